"""train.py: a complete run, resuming, several processes, and refusal of bad input before training starts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline, ImageError
from diffad.data import DataError, training_samples
from diffad.imaging.preprocessing import resize_rgb, to_model_range
from diffad_training import train
from diffad_training.config import TrainingConfig, parse_config, save_config, training_steps
from diffad_training.dataset import CachedDataset, augment, build_cache, channel_statistics
from safetensors.torch import load_file
from tiny_pipeline import smooth_images, tiny_extractor

TINY_UNET = {
    "patch_size": 2,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "add_attention": False,
}


@pytest.fixture(scope="module")
def good_images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for i, image in enumerate(smooth_images(13, seed=0)):
        image.save(folder / f"{i:03d}.png")
    return folder


def tiny_config(data: Path, output_dir: Path, **changes) -> TrainingConfig:
    settings = {
        "data": str(data),
        "output_dir": str(output_dir),
        "resolution": 32,
        "levels": [2],
        "unet": TINY_UNET,
        "max_train_steps": 4,
        "train_batch_size": 3,
        "lr_warmup_steps": 1,
        "learning_rate": 1e-3,
        "held_out_fraction": 0.25,
        "checkpointing_steps": 2,
        "validation_steps": 2,
        "mixed_precision": "no",
        "report_to": None,
    }
    return TrainingConfig(**{**settings, **changes})


def unet_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_run_saves_a_pipeline_that_scores(good_images, tmp_path, capsys):
    train.main(tiny_config(good_images, tmp_path, report_to="tensorboard", checkpointing_steps=1, checkpoints_total_limit=2))
    pipe = DiffADPipeline.from_pretrained(tmp_path)
    assert pipe.calibration.config.num_calibration_images == 2  # and one for the statistics
    assert np.isfinite(pipe(smooth_images(2, seed=9)).image_scores).all()
    assert not (tmp_path / "cache").exists()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert list((tmp_path / "logs").rglob("events.out.tfevents*"))
    assert json.loads((tmp_path / "training_config.json").read_text())["resolution"] == 32
    assert "10 images to train on, 3 held out" in capsys.readouterr().out


def test_resumed_run_equals_an_uninterrupted_one(good_images, tmp_path):
    train.main(tiny_config(good_images, tmp_path / "whole", augmentations=["hflip"]))
    interrupted = str(tmp_path / "whole" / "checkpoint-2")
    train.main(tiny_config(good_images, tmp_path / "resumed", augmentations=["hflip"], resume_from_checkpoint=interrupted))
    expected, actual = unet_weights(tmp_path / "whole"), unet_weights(tmp_path / "resumed")
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def test_training_lowers_the_held_out_losses(good_images, tmp_path, capsys):
    train.main(tiny_config(good_images, tmp_path, max_train_steps=120, validation_steps=60, checkpointing_steps=1000))
    rows = re.findall(
        r"step (\d+): held_out/simple ([\d.]+), held_out/vlb [\d.]+, held_out/feature ([\d.]+)", capsys.readouterr().out
    )
    first, last = rows[0], rows[-1]
    assert float(last[1]) < float(first[1]) and float(last[2]) < float(first[2])


def test_two_processes_agree_with_one(good_images, tmp_path):
    """Same global batch, frozen weights: validation sees each of 3 held-out images once however they are dealt out."""
    losses = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        config = tiny_config(good_images, folder, learning_rate=0.0, weight_decay=0.0, max_train_steps=2, train_batch_size=2)
        folder.mkdir()
        save_config(config, folder / "config.json")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        command += ["--multi_gpu"] if processes > 1 else []
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", train.__file__]
        command += ["--config", str(folder / "config.json")]
        run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert run.returncode == 0, run.stderr
        assert f"{processes} process(es)" in run.stdout
        losses[processes] = re.findall(r"step 2: (.*)", run.stdout)
        assert DiffADPipeline.from_pretrained(folder).calibration.config.num_calibration_images == 2
    assert losses[1] and losses[1] == losses[2]


def test_damaged_image_stops_the_run_before_training(good_images, tmp_path):
    for path in good_images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "005.png").write_bytes((good_images / "005.png").read_bytes()[:300])
    with pytest.raises(ImageError, match="005.png: damaged image"):
        train.main(tiny_config(tmp_path, tmp_path / "model"))
    with pytest.raises(DataError, match="no images found"):
        (tmp_path / "empty").mkdir()
        train.main(tiny_config(tmp_path / "empty", tmp_path / "model"))


def test_missing_checkpoint_is_refused(good_images, tmp_path):
    with pytest.raises(DataError, match="resume_from_checkpoint nowhere"):
        train.main(tiny_config(good_images, tmp_path, resume_from_checkpoint="nowhere"))


def test_cache_holds_what_would_be_computed_and_notices_changes(good_images, tmp_path):
    extractor = tiny_extractor()
    samples = training_samples(good_images)
    build_cache(samples, extractor, 32, tmp_path / "cache")
    cached = CachedDataset(tmp_path / "cache")
    assert len(cached) == 13
    pixels = resize_rgb(samples[5].read(), (32, 32))
    np.testing.assert_array_equal(cached[5]["images"], pixels)
    with torch.no_grad():
        expected = extractor.raw_features(to_model_range(torch.from_numpy(pixels))[None])[0]
    torch.testing.assert_close(cached[5]["features"].float(), expected, rtol=2e-3, atol=2e-3)
    written = (tmp_path / "cache" / "images.npy").stat().st_mtime_ns
    build_cache(samples, extractor, 32, tmp_path / "cache")
    assert (tmp_path / "cache" / "images.npy").stat().st_mtime_ns == written
    build_cache(samples[:4], extractor, 32, tmp_path / "cache")
    assert len(CachedDataset(tmp_path / "cache")) == 4


def test_channel_statistics_agree_with_numpy():
    features = np.random.default_rng(0).normal(3, 2, size=(7, 5, 4, 4)).astype(np.float16)
    mean, std = channel_statistics(features, [0, 2, 5])
    chosen = features[[0, 2, 5]].astype(np.float64)
    np.testing.assert_allclose(mean, chosen.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, chosen.std(axis=(0, 2, 3)), rtol=1e-6)


def test_augmentations_are_drawn_per_image_and_keep_pixels():
    torch.manual_seed(0)
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(64, 1, 4, 4)
    turned = augment(images, ["rot90"])
    assert {tuple(image.flatten().tolist()) for image in turned} == {
        tuple(torch.rot90(images[0, 0], k).flatten().tolist()) for k in range(4)
    }
    assert len(augment(images, ["hflip", "vflip"]).flatten(1).unique(dim=0)) == 4
    assert torch.equal(augment(images, []), images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing"),
        (["--data", "x", "--config", "nothing"], "no preset of that name"),
        (["--data", "x", "--max_train_steps", "many"], "max_train_steps: expected int"),
        (["--data", "x", "--augmentations", "[shear]"], "unknown augmentations"),
        (["--data", "x", "--held_out_fraction", "1.5"], "held_out_fraction"),
    ],
)
def test_wrong_options_are_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_config(arguments)
    assert message in capsys.readouterr().err


def test_options_override_the_preset_and_survive_saving(tmp_path):
    config = parse_config(["--data", "x", "--config", "paper", "--learning_rate", "3e-4", "--levels", "[1, 2]"])
    assert (config.resolution, config.learning_rate, config.levels) == (256, 3e-4, [1, 2])
    save_config(config, tmp_path / "saved.json")
    assert parse_config(["--config", str(tmp_path / "saved.json")]) == config


@pytest.mark.parametrize(
    ("epochs", "images", "processes", "steps"), [(None, 20, 1, 1000), (200, 20, 1, 600), (200, 20, 2, 400), (200, 648, 1, 1000)]
)
def test_few_images_are_trained_on_for_fewer_steps(epochs, images, processes, steps):
    assert training_steps(TrainingConfig(max_train_epochs=epochs), images, processes) == steps
