"""train.py: a complete run and what it leaves, and bad input refused before training starts."""

import dataclasses
import json
import re

import numpy as np
import pytest
from diffad import DiffADPipeline, ImageError
from diffad.data import DataError
from diffad_training import train
from diffad_training.conversion import SettingsError
from PIL import Image
from tiny_pipeline import smooth_images
from tiny_training import save_images, tiny_config


def test_run_saves_a_pipeline_that_scores(trained):
    pipe = DiffADPipeline.from_pretrained(trained.folder)
    assert pipe.calibration.config.num_calibration_images == 2  # and one for the statistics
    assert pipe.references.images.shape == (10, 3, 32, 32)  # every training image, of fewer than 48
    assert np.isfinite(pipe(smooth_images(2, seed=9)).image_scores).all()
    settings = json.loads((trained.folder / "training_config.json").read_text())
    assert settings["resolution"] == 32 and settings["augmentations"] == ["hflip"]
    assert json.loads((trained.folder / "training_summary.json").read_text())["steps"] == 30
    assert list((trained.folder / "logs").rglob("events.out.tfevents*"))


def test_run_says_what_it_does_and_how_fast(trained):
    assert "10 images to train on, 3 held out; " in trained.printed
    assert " M parameters; 1 process(es) on cpu, no precision" in trained.printed
    speeds = re.findall(r"; ([\d.]+) images/s, (\d+) ms/step", trained.printed)
    assert len(speeds) == 3
    for images, milliseconds in speeds:
        assert float(images) == pytest.approx(3 / (float(milliseconds) / 1000), rel=0.5)


def test_training_lowers_the_held_out_losses(trained):
    rows = re.findall(r"step (\d+): held_out/simple ([\d.]+), held_out/vlb [\d.]+, held_out/feature ([\d.]+)", trained.printed)
    assert [row[0] for row in rows] == ["10", "20", "30"]
    first, last = rows[0], rows[-1]
    assert float(last[1]) < float(first[1]) and float(last[2]) < float(first[2])


def test_names_of_the_held_out_images_lie_beside_the_model(trained):
    held_out = json.loads((trained.folder / "held_out.json").read_text())["held_out"]
    assert len(held_out) == 3 and set(held_out) < {f"{i:03d}.png" for i in range(13)}


def test_finished_model_has_no_cache_and_checkpoints_only_if_wanted(trained, good_images, tmp_path):
    assert not (trained.folder / "cache").exists()
    assert sorted(path.name for path in trained.folder.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-30"]
    train.main(tiny_config(good_images, tmp_path, max_train_steps=2, checkpointing_steps=1))
    left = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in left if name.startswith((".", "checkpoint", "cache"))] and "unet" in left


def test_damaged_image_stops_the_run_before_training(good_images, tmp_path):
    for path in good_images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "005.png").write_bytes((good_images / "005.png").read_bytes()[:300])
    with pytest.raises(ImageError, match="005.png: damaged image"):
        train.main(tiny_config(tmp_path, tmp_path / "model"))
    few = save_images(tmp_path / "few", 3)
    with pytest.raises(DataError, match="only 3 good images"):
        train.main(tiny_config(few, tmp_path / "none"))
    with pytest.raises(DataError, match="no images found"):
        (tmp_path / "empty").mkdir()
        train.main(tiny_config(tmp_path / "empty", tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gaussian_dims": 10_000}, "gaussian_dims: must be at most"),
        ({"levels": [9]}, r"levels=\[9\]: "),
        ({"extractor": "lite7"}, "extractor=lite7"),
        ({"unet": {"patch_sizes": 2}}, "unet=.*patch_sizes"),
        (
            {"resolution": 40, "unet": {"block_out_channels": [32] * 3, "patch_size": 4}},
            "resolution: must be a multiple of 16",
        ),
        ({"score": {"top_k": 2000}}, "score: top_k must be at most 1024"),
        ({"score": {"timesteps": [3]}}, r"score: timesteps \[3\] are not in the chain of 250"),
        ({"score": {"num_inference_steps": 1}}, "score: num_inference_steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_data_is_read(changes, message, tmp_path):
    config = tiny_config(tmp_path / "no such folder", tmp_path / "model", **changes)
    with pytest.raises((SettingsError, DataError), match=message):
        train.main(config)
    assert not list(tmp_path.iterdir())


def test_region_of_interest_is_stored_and_one_of_another_aspect_refused(good_images, tmp_path):
    inside = np.zeros((64, 64), dtype=np.uint8)
    inside[:, :32] = 255
    Image.fromarray(inside).save(tmp_path / "roi.png")
    Image.fromarray(inside[:32]).save(tmp_path / "wide.png")
    with pytest.raises(ImageError, match="wide.png: a region of 64x32 pixels does not fit images of 32x32"):
        train.main(tiny_config(good_images, tmp_path / "refused", roi=str(tmp_path / "wide.png")))
    assert not (tmp_path / "refused").exists()
    train.main(tiny_config(good_images, tmp_path / "model", max_train_steps=2, roi=str(tmp_path / "roi.png")))
    pipe = DiffADPipeline.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(pipe.calibration.inside((64, 64)), inside > 0)


def test_thresholds_count_groups_of_held_out_images(good_images, tmp_path):
    """Two photographs of each part: what guarantees the false-alarm rate are parts."""
    rows = "".join(f"{path},train,good,part {i // 2}\n" for i, path in enumerate(sorted(good_images.iterdir())[:12]))
    (tmp_path / "parts.csv").write_text(f"image,split,label,group\n{rows}")
    config = tiny_config(tmp_path / "parts.csv", tmp_path / "model", max_train_steps=1, held_out_fraction=0.5)
    train.main(config)
    held_out = json.loads((tmp_path / "model" / "held_out.json").read_text())["held_out"]
    assert len(held_out) == 6
    assert DiffADPipeline.from_pretrained(tmp_path / "model").calibration.config.num_calibration_images == 2


def test_short_runs_of_few_images_end_by_epochs(good_images, tmp_path):
    config = tiny_config(good_images, tmp_path, max_train_epochs=1, report_to=None)
    train.main(dataclasses.replace(config, max_train_steps=500))
    assert json.loads((tmp_path / "training_summary.json").read_text())["steps"] == 4  # batches of 3 of 10 images
