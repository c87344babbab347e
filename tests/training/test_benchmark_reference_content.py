"""The benchmark of content from good images."""

import json

import numpy as np
import torch
from diffad_training.benchmarks import reference_content
from diffad_training.benchmarks.reference_content import METHODS, hole, main, nearest
from tiny_pipeline import smooth_images


def test_holes_have_about_their_share_of_the_image():
    image = np.random.default_rng(0).normal(size=(3, 128, 128))
    shares = [hole(image, 0.05, np.random.default_rng(seed)).mean() for seed in range(30)]
    assert 0.02 < np.median(shares) < 0.06


def test_the_nearest_image_is_told_by_what_surrounds_the_hole():
    references = torch.stack([torch.full((3, 16, 16), level) for level in (-0.5, 0.1, 0.6)])
    region = torch.zeros(16, 16, dtype=torch.bool)
    region[6:10, 6:10] = True
    damaged = torch.where(region, -0.5, torch.full((3, 16, 16), 0.2))
    assert torch.equal(nearest(damaged, region, references), references[1])


def test_a_small_run_keeps_and_shows_every_size(tmp_path, monkeypatch):
    for part, count in (("train", 6), ("test", 2)):
        (tmp_path / "part" / part / "good").mkdir(parents=True)
        for i, image in enumerate(smooth_images(count, seed=count)):
            image.save(tmp_path / "part" / part / "good" / f"{i}.png")
    card = tmp_path / "card.md"
    card.write_text("<!-- reference_content -->\n<!-- /reference_content -->\n")
    monkeypatch.setattr(reference_content, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(reference_content, "CARD", card)
    main(["--data_root", str(tmp_path), "--categories", "part", "--holes", "2", "--references", "4", "--resolution", "32"])
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert record["references"] == 4 and not record["turns"]
    for figures in record["psnr"].values():
        assert all(figures[name] > 0 for name in METHODS)
    assert card.read_text().count("| part | ") == 4
