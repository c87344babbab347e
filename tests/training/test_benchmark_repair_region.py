"""The benchmark of what the region of repair holds, and the soft defects that it puts on good images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffad import ReferenceImages
from diffad_training.benchmarks import repair_region
from diffad_training.benchmarks.repair_region import EDGES, REGIONS, cases, compare, main
from diffad_training.benchmarks.synthetic_defects import with_shade
from markdown_tables import figures, table_rows
from tiny_pipeline import save_tiny_model, smooth_images, tiny_pipeline


def test_a_shade_is_a_gaussian_of_the_distance_that_leaves_the_defect_as_it_is():
    normal, defective = np.full((100, 100, 3), 100, np.uint8), np.full((100, 100, 3), 100, np.uint8)
    defective[:, :50] = 250
    mask = np.zeros((100, 100), bool)
    mask[:, :50] = True
    shaded = with_shade(normal, defective, mask, np.random.default_rng(0))
    assert np.array_equal(shaded[mask], defective[mask])
    row = shaded[0, 50:, 0] - 100.0  # at the distances 1, 2, ... from the defect
    rng = np.random.default_rng(0)
    reach, sign = rng.uniform(0.015, 0.05) * 100, rng.choice([-1, 1])
    strength = sign * rng.uniform(0.1, 0.35)
    assert row == pytest.approx(100 * strength * np.exp(-np.square(np.arange(1, 51) / reach)), abs=0.5)


def test_three_of_four_defects_have_a_shade_and_more_is_changed_by_them():
    made = cases([np.asarray(image) for image in smooth_images(3, seed=2, size=(128, 128))], 8, seed=1)
    assert [case.edge for case in made] == ["soft", "soft", "soft", "sharp"] * 2
    changed = {edge: [(case.defective != case.normal).mean() for case in made if case.edge == edge] for edge in EDGES}
    assert np.mean(changed["soft"]) > np.mean(changed["sharp"]) > 0


def test_figures_of_a_region_and_a_repair_by_hand():
    """A region that holds half of a square defect and as much beside it; the repair is 10 levels too dark all around."""
    normal = torch.full((3, 64, 64), 120 / 127.5 - 1)
    defective, region = normal.clone(), torch.zeros(64, 64, dtype=torch.bool)
    defective[:, 28:36, 28:36] += 0.1
    defective[:, 50] += 1 / 127.5  # too little to count
    region[28:36, 32:40] = True
    found = compare(normal, defective, region, normal - 10 / 127.5)
    assert (found.covered, found.beyond) == (0.5, 0.5)
    assert found.veil == pytest.approx(10, abs=1e-3) and found.psnr == pytest.approx(20 * np.log10(25.5), abs=1e-3)
    stripes = torch.where(torch.arange(64) % 2 > 0, 10.0, -10.0) / 127.5  # as large, but no veil
    found = compare(normal, defective, region, normal + stripes)
    assert found.veil < 0.1 and found.psnr == pytest.approx(20 * np.log10(25.5), abs=1e-3)


@torch.no_grad()
def test_a_small_run_keeps_and_shows_every_region(tmp_path, monkeypatch):
    (tmp_path / "nut/train/good").mkdir(parents=True)
    for i, image in enumerate(smooth_images(6, seed=5)):
        image.save(tmp_path / "nut/train/good" / f"{i}.png")
    model = tmp_path / "model"
    save_tiny_model(model)
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(24, seed=7), smoothing_sigma=1.0)
    references = ReferenceImages((32, 32), (0,) * 5)
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in smooth_images(5, seed=3)])
    references.images.copy_(torch.from_numpy(pixels))
    pipe.register_modules(references=references)
    pipe.save_pretrained(model)
    (model / "training_config.json").write_text(json.dumps({"data": str(tmp_path / "nut")}))
    (model / "held_out.json").write_text(json.dumps({"held_out": ["train/good/1.png", "train/good/4.png"]}))
    card = tmp_path / "card.md"
    card.write_text("<!-- repair_region -->\n<!-- /repair_region -->\n")
    monkeypatch.setattr(repair_region, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(repair_region, "CARD", card)
    monkeypatch.setattr(repair_region, "SHARES", (0.15,))
    main(["--data_root", str(tmp_path), "--models", str(model), "--defects", "12", "--seed", "1"])
    (record,) = map(json.loads, Path(tmp_path / "results.jsonl").read_text().splitlines())
    assert 0 < record["found"]["soft"] <= 9
    rows = [row for row in table_rows(card.read_text()) if row["edge"] == "soft"]
    assert [row["region"] for row in rows] == list(REGIONS)
    for row, of_region in zip(rows, record["figures"]["soft"].values(), strict=True):
        assert figures(row)["PSNR nearby"] == [pytest.approx(of_region["psnr"], abs=0.05)]
    covered = [of_region["covered"] for of_region in record["figures"]["soft"].values()]
    assert covered == sorted(covered)
