"""Tables of benchmarks/speed.py: figures of a run whose timings are known."""

import json

from diffad_training.benchmarks import speed_contenders, speed_tables
from documents import ROOT


def timing(milliseconds, images=2, **labels) -> dict:
    """Of a contender that takes so long per image in the median of three rounds."""
    return {"images": images, "calls": 6, "seconds": [s * images / 1000 for s in (milliseconds, 1, 1e6)], **labels}


def score(name, runtime, precision, batch, source, milliseconds, **more) -> dict:
    return timing(milliseconds, **speed_contenders.scoring_labels(name, runtime, precision, batch, source, **more))


def unet(runtime, precision, milliseconds, batch=1, size=(256, 256), flops=4e9) -> dict:
    labels = speed_contenders.unet_labels(runtime, precision, batch, size)
    return timing(milliseconds, batch, flops=flops * batch, **labels)


RESULT = {
    "category": "nut",
    "model": "nut-0",
    "threads": 2,
    "reverse_steps": 250,
    "machine": {"cpu": "A CPU", "flags": ["avx2"], "cores": 2, "versions": {"torch": "2.10", "anomalib": None}},
    "command": "python training/benchmarks/speed.py",
    "images": 2,
    "runs": 3,
    "seed": 0,
    "date": "2026-01-02",
    "megabytes": {"diffad": {"unet": 30.0, "gaussian": 60.5}, "ov": {"model.bin": 40.0}},
    "timings": [
        score("diffad", "eager", "fp32", 1, "tensors", 160),
        score("diffad", "eager", "fp32", 1, "files", 200),
        score("diffad", "eager", "fp32", 16, "tensors", 80),
        score("diffad", "eager", "fp32", 16, "files", 100),
        score("ov", "openvino", "bf16", 1, "tensors", 20),
        score("PaDiM", "eager", "fp32", 1, "tensors", 50, is_peer=True),
        score("PatchCore", "openvino", "bf16, default", 1, "tensors", 40, is_peer=True),
        {"group": "timesteps", "precision": "fp32", "timesteps": 1, **timing(60)},
        {"group": "timesteps", "precision": "fp32", "timesteps": 3, **timing(160)},
        unet("eager", "fp32", 40),
        unet("eager", "fp32", 25, batch=16),
        unet("eager", "fp32", 170, size=(512, 512), flops=16e9),
        unet("openvino", "bf16", 8),
        {
            "group": "parts",
            "name": "extractor, 256x256",
            "runtime": "eager",
            "precision": "fp32",
            "flops": 1e9,
            **timing(10, 1),
        },
        {"group": "parts", "name": "fusion", "runtime": "eager", "precision": "fp32", "flops": 0, **timing(3, 1)},
        {"group": "repair", "name": "repair", "precision": "fp32", **timing(800, 1)},
        {"group": "matmul", "name": "matmul", "runtime": "eager", "precision": "fp32", "flops": 2e9, **timing(10, 1)},
        {"group": "start", "name": "diffad", **timing(4000, 1)},
        {"group": "start", "name": "ov", **timing(1500, 1)},
    ],
}


def cells(markdown: str) -> list[list[str]]:
    """Of all rows of all tables, their heads included."""
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_scoring_is_shown_one_by_one_and_in_the_largest_batch():
    text = speed_tables.scoring_table(RESULT)
    head, eager, exported, padim, patchcore = cells(text)
    titles = ("images/s", "ms", "from files, images/s", "from files, ms")
    assert head[3:] == [f"batch {batch}: {title}" for batch in (1, 16) for title in titles]
    assert eager == ["**diffad**", "eager", "fp32", "6.2", "160.0", "5.0", "200.0", "12.5", "80.0", "10.0", "100.0"]
    assert exported == ["**ov**", "openvino", "bf16", "50.0", "20.0", *["–"] * 6]
    assert padim[:4] == ["PaDiM", "eager", "fp32", "20.0"] and patchcore[2:4] == ["bf16, default", "25.0"]
    assert "fastest peer at batch 1 is PatchCore (openvino, bf16, default)" in text
    assert "diffad (eager, fp32) 0.25 times, ov (openvino, bf16) 2.00 times." in text
    alone = {**RESULT, "timings": [t for t in RESULT["timings"] if not t.get("is_peer")]}
    assert "fastest peer" not in speed_tables.scoring_table(alone)


def test_reverse_diffusion_is_passes_of_the_same_runtime_and_precision():
    head, eager, exported = cells(speed_tables.diffusion_table(RESULT))
    assert "250 passes, s (computed)" in head and "UNet pass, ms (passes measured)" in head
    assert eager == ["diffad", "eager", "fp32", "40.0 (6)", "10.00", "160.0", "62"]
    assert exported == ["ov", "openvino", "bf16", "8.0 (6)", "2.00", "20.0", "100"]


def test_shares_of_the_peak_are_of_the_same_precision():
    rows = {(row[0], row[1]): row[3:] for row in cells(speed_tables.peak_table(RESULT))[1:]}
    assert rows["matmul", "eager"] == ["2.00", "10.0", "200", "100%"]
    assert rows["UNet pass, 256x256, batch 1", "eager"] == ["4.00", "40.0", "100", "50%"]
    assert rows["UNet pass, 256x256, batch 16", "eager"] == ["4.00", "25.0", "160", "80%"]
    assert rows["extractor, 256x256", "eager"] == ["1.00", "10.0", "100", "50%"]
    assert rows["UNet pass, 256x256, batch 1", "openvino"][-1] == "–"  # no matrix product in bf16 was timed


def test_growth_parts_work_and_sizes():
    batches = cells(speed_tables.growth_table(RESULT))
    assert batches[1] == ["diffad", "eager", "fp32", "160.0", "80.0"] and batches[-1] == ["fp32", "60.0", "160.0"]
    parts = cells(speed_tables.parts_table(RESULT))[1:]
    assert parts[:2] == [["extractor, 256x256", "10.0"], ["fusion", "3.0"]]
    assert parts[2:] == [["UNet pass, 256x256, fp32", "40.0"], ["UNet pass, 512x512, fp32", "170.0"]]
    assert cells(speed_tables.work_table(RESULT))[1:] == [["repair", "fp32", "800"]]
    assert cells(speed_tables.size_table(RESULT))[1:] == [
        ["diffad", "90.5", "gaussian 60.5, unet 30.0", "4.0"],
        ["ov", "40.0", "model.bin 40.0", "1.5"],
    ]
    said = speed_tables.conditions(RESULT)
    assert "A CPU (avx2), 2 cores, torch 2.10;" in said and "anomalib" not in said and RESULT["command"] in said


def test_the_card_shows_the_newest_run_of_each(tmp_path):
    results, card = tmp_path / "speed.jsonl", tmp_path / "speed.md"
    runs = [{**RESULT, "date": "old"}, {**RESULT, "threads": 1}, {**RESULT, "date": "new"}]
    results.write_text("".join(json.dumps(run) + "\n" for run in runs))
    card.write_text((ROOT / "model_cards/speed.md").read_text())
    speed_tables.update_tables(card, results)
    text = card.read_text()
    assert text.count("**nut, 2 threads**") == text.count("**nut, 1 thread**") == len(speed_tables.TABLES)
    assert "new" in text and "old:" not in text
    speed_tables.update_tables(card, tmp_path / "none.jsonl")
    assert "nut" not in card.read_text()
