"""diffad train: the settings of training as options."""

import json
import shlex

import pytest
import yaml
from accelerate.state import AcceleratorState
from cli_runner import run, save_images
from diffad import DiffADPipeline
from diffad.cli.train import launch_command
from tiny_pipeline import smooth_images


@pytest.fixture(autouse=True)
def new_accelerator():
    """Each training is its process's first, as on the command line."""
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny_settings(tmp_path):
    path = tmp_path / "tiny.yaml"
    unet = {
        "patch_size": 2,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "add_attention": False,
    }
    unet.update(down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2)
    settings = {"resolution": 32, "levels": [2], "unet": unet, "max_train_steps": 40, "lr_warmup_steps": 1, "seed": 3}
    path.write_text(yaml.safe_dump({**settings, "held_out_fraction": 0.25, "mixed_precision": "no", "report_to": None}))
    return path


def test_train_saves_a_model_and_takes_any_setting(tmp_path):
    good = save_images(tmp_path / "good", smooth_images(10, seed=0))
    options = (
        "--config",
        tiny_settings(tmp_path),
        "--max-train-steps",
        2,
        "--train_batch_size",
        3,
        "--output",
        tmp_path / "out",
    )
    result = run("train", *options, good)
    assert result.exit_code == 0, result.stderr
    assert DiffADPipeline.from_pretrained(tmp_path / "out").calibration.is_fitted
    config = json.loads((tmp_path / "out" / "training_config.json").read_text())
    assert (config["max_train_steps"], config["train_batch_size"], config["seed"]) == (2, 3, 3)


def test_train_says_how_to_use_several_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("diffad_training.train.main", lambda config: None)
    result = run("train", "my parts", "--output", "out", "--seed", 1, "--max-train-steps", 5)
    assert result.exit_code == 0
    command = "accelerate launch --multi_gpu -m diffad_training.train --config cpu-small --data 'my parts' --output_dir out"
    assert f"{command} --seed 1 --max_train_steps 5\n" in result.stderr


def test_launch_command_is_the_same_training():
    from diffad_training.config import load_config, parse_config

    options = {"data": "parts", "output_dir": "out", "unet": '{"patch_size": 2}', "seed": None}
    words = shlex.split(launch_command("paper", options))
    assert parse_config(words[words.index("diffad_training.train") + 1 :]) == load_config("paper", options)
