"""The benchmark of confident repairs, and the figure of their ways."""

import json

import numpy as np
import pytest
import torch
from diffad_training.benchmarks import repair_confidence, trajectories
from diffad_training.benchmarks.repair_confidence import SHARES, measure
from markdown_tables import figures, row_of
from PIL import Image
from tiny_pipeline import save_tiny_model, smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model and the data root that it belongs to."""
    root = tmp_path_factory.mktemp("root")
    for kind, count in (("good", 2), ("hole", 1)):
        (root / "nut/test" / kind).mkdir(parents=True)
        for i, image in enumerate(smooth_images(count, seed=8)):
            pixels = np.array(image)
            pixels[8:16, 8:16] = pixels[8:16, 8:16] if kind == "good" else 255
            Image.fromarray(pixels).save(root / "nut/test" / kind / f"{i}.png")
    save_tiny_model(root / "model")
    (root / "model/training_config.json").write_text(json.dumps({"data": "somewhere/nut"}))
    return root / "model", root


def test_shares_of_found_and_of_confident_repairs(monkeypatch):
    pipe = tiny_pipeline()
    verdicts, said = iter([True, True, False]), iter([True, False, True])

    class Stub:
        def __call__(self, image):
            return type("Output", (), {"is_defective": [next(verdicts)]})

        def reconstruct(self, image):
            return type("Output", (), {"confident": [next(said)]})

    assert pipe.image_size == (32, 32)
    images = [np.asarray(image) for image in smooth_images(2, seed=1)]
    assert measure(Stub(), images, 3, seed=0, share=0.1) == {"found": pytest.approx(2 / 3), "confident": pytest.approx(2 / 3)}


@torch.no_grad()
def test_a_run_keeps_and_shows_every_size(model, tmp_path, monkeypatch):
    card = tmp_path / "card.md"
    card.write_text("<!-- repair_confidence -->\n<!-- /repair_confidence -->\n")
    monkeypatch.setattr(repair_confidence, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(repair_confidence, "CARD", card)
    repair_confidence.main(["--data_root", str(model[1]), "--models", str(model[0]), "--defects", "1"])
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert list(record["shares"]) == [str(share) for share in SHARES]
    shown = figures(row_of(card.read_text(), "nut"))
    assert shown["defects of each size"] == [1]
    assert shown["35 %"] == [100 * record["shares"]["0.35"]["confident"]]


@torch.no_grad()
def test_a_row_of_frames_for_each_case_and_preset(model, tmp_path, monkeypatch):
    monkeypatch.setattr(trajectories, "PICTURE", tmp_path / "trajectories.png")
    options = ["--cases", "hole/0", "--presets", "paper", "partial_diffusion", "--num_steps", "10"]
    trajectories.main(["--data_root", str(model[1]), "--model", str(model[0]), *options])
    with Image.open(tmp_path / "trajectories.png") as picture:
        assert picture.width > trajectories.FRAMES * trajectories.HEIGHT and picture.height > 2 * trajectories.HEIGHT
