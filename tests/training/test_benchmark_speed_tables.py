"""Tables of benchmarks/speed.py: figures of a run whose timings are known."""

import json

from diffad_training.benchmarks import speed_contenders, speed_tables
from documents import ROOT
from markdown_tables import figures, row_of, table_rows


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


def test_scoring_is_shown_one_by_one_and_in_the_largest_batch():
    text = speed_tables.scoring_table(RESULT)
    eager = figures(row_of(text, "diffad", "eager", "fp32"))
    expected = {
        "batch 1: images/s": [6.2],
        "batch 1: ms": [160],
        "batch 1: from files, images/s": [5],
        "batch 1: from files, ms": [200],
        "batch 16: images/s": [12.5],
        "batch 16: ms": [80],
        "batch 16: from files, images/s": [10],
        "batch 16: from files, ms": [100],
    }
    assert expected.items() <= eager.items()
    exported = figures(row_of(text, "ov", "openvino", "bf16"))
    assert exported["batch 1: images/s"] == [50] and exported["batch 1: ms"] == [20]
    assert not exported.keys() & (expected.keys() - {"batch 1: images/s", "batch 1: ms"})  # was not timed
    assert figures(row_of(text, "PaDiM"))["batch 1: images/s"] == [20]
    assert figures(row_of(text, "PatchCore", "openvino", "bf16, default"))["batch 1: images/s"] == [25]
    assert "fastest peer at batch 1 is PatchCore (openvino, bf16, default)" in text
    assert "diffad (eager, fp32) 0.25 times, ov (openvino, bf16) 2.00 times." in text
    alone = {**RESULT, "timings": [t for t in RESULT["timings"] if not t.get("is_peer")]}
    assert "fastest peer" not in speed_tables.scoring_table(alone)


def test_reverse_diffusion_is_passes_of_the_same_runtime_and_precision():
    table = speed_tables.diffusion_table(RESULT)
    for name, runtime, pass_ms, seconds, scoring_ms, factor in (
        ("diffad", "eager", 40, 10, 160, 62),
        ("ov", "openvino", 8, 2, 20, 100),
    ):
        found = figures(row_of(table, name, runtime))
        assert found["UNet pass, ms (passes measured)"] == [pass_ms, 6] and found["250 passes, s (computed)"] == [seconds]
        assert found["scoring, ms"] == [scoring_ms] and found["times as fast"] == [factor]


def test_shares_of_the_peak_are_of_the_same_precision():
    table, titles = speed_tables.peak_table(RESULT), ("GFLOP/image", "ms/image", "GFLOP/s", "share of the matrix peak")
    for name, expected in {
        "matmul": [2, 10, 200, 100],
        "UNet pass, 256x256, batch 1": [4, 40, 100, 50],
        "UNet pass, 256x256, batch 16": [4, 25, 160, 80],
        "extractor, 256x256": [1, 10, 100, 50],
    }.items():
        found = figures(row_of(table, name, "eager"))
        assert [found[title] for title in titles] == [[value] for value in expected]
    # No matrix product in bf16 was timed.
    assert titles[-1] not in figures(row_of(table, "UNet pass, 256x256, batch 1", "openvino"))


def test_growth_parts_work_and_sizes():
    growth = speed_tables.growth_table(RESULT)
    assert [values[0] for values in list(figures(row_of(growth, "diffad", "eager", "fp32")).values())[-2:]] == [160, 80]
    assert [values[0] for values in list(figures(row_of(growth, "fp32")).values())[-2:]] == [60, 160]
    parts = {row["part"]: float(row["ms"]) for row in table_rows(speed_tables.parts_table(RESULT))}
    of_unet = {"UNet pass, 256x256, fp32": 40, "UNet pass, 512x512, fp32": 170}
    assert parts == {"extractor, 256x256": 10, "fusion": 3, **of_unet}
    assert figures(row_of(speed_tables.work_table(RESULT), "repair", "fp32"))["ms"] == [800]
    sizes = speed_tables.size_table(RESULT)
    for name, megabytes, seconds in (("diffad", 90.5, 4), ("ov", 40, 1.5)):
        found = figures(row_of(sizes, name))
        assert found["MB"] == [megabytes] and found["first answer, s"] == [seconds]
    assert row_of(sizes, "diffad")["largest entries"] == "gaussian 60.5, unet 30.0"
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
