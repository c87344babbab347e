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
from tiny_training import TINY_UNET


@pytest.fixture(autouse=True)
def new_accelerator():
    """Each training is its process's first, as on the command line."""
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny_settings(tmp_path):
    path = tmp_path / "tiny.yaml"
    settings = {"resolution": 32, "levels": [2], "unet": TINY_UNET, "max_train_steps": 40, "lr_warmup_steps": 1, "seed": 3}
    settings |= {"feature_denoiser_steps": 2, "feature_denoiser": {"width": 16, "num_blocks": 1}, "choose_map": False}
    path.write_text(yaml.safe_dump({**settings, "held_out_fraction": 0.25, "mixed_precision": "no", "report_to": None}))
    return path


def test_train_saves_a_model_and_takes_any_setting(tmp_path):
    good = save_images(tmp_path / "good", smooth_images(10, seed=0))
    options = [
        "--max-train-steps",
        2,
        "--train_batch_size",
        3,
        "--shared_gaussian",
        "--device",
        "cpu",
        "--output",
        tmp_path / "out",
    ]
    result = run("train", "--config", tiny_settings(tmp_path), *options, good)
    assert result.exit_code == 0, result.stderr
    assert DiffADPipeline.from_pretrained(tmp_path / "out").calibration.is_fitted
    config = json.loads((tmp_path / "out" / "training_config.json").read_text())
    chosen = ("max_train_steps", "train_batch_size", "seed", "shared_gaussian")
    assert [config[name] for name in chosen] == [2, 3, 3, True]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--overwrite --keep_checkpoints", {"overwrite": True, "keep_checkpoints": True}),
        ("--all-good", {"all_good": True}),
        ("--all-good false --shared-gaussian true", {"all_good": False, "shared_gaussian": True}),
        ("--shared_gaussian --score '{top_k: 4}'", {"shared_gaussian": True, "score": {"top_k": 4}}),
        ("--augmentations hflip --levels 2", {"augmentations": ["hflip"], "levels": [2]}),
        ("--roi region.png", {"roi": "region.png"}),
    ],
)
def test_settings_are_what_the_words_say(monkeypatch, words, expected):
    configs = []
    monkeypatch.setattr("diffad_training.train.main", configs.append)
    result = run("train", "parts", *shlex.split(words), "--output", "out")
    assert result.exit_code == 0, result.stderr
    assert {name: getattr(configs[0], name) for name in expected} == expected
    assert (configs[0].data, configs[0].output_dir) == ("parts", "out")


def test_former_settings_work_with_a_warning(monkeypatch):
    expected = {"shared_gaussian": True, "score": {"top_k": 4}}
    with pytest.warns(FutureWarning, match="(position_free|recipe) is now called (shared_gaussian|score)"):
        test_settings_are_what_the_words_say(monkeypatch, "--position_free --recipe '{top_k: 4}'", expected)


def test_a_settings_file_that_is_no_yaml_is_wrong_usage(tmp_path):
    (tmp_path / "broken.yaml").write_text("resolution: 64\n\tlevels: [2]\n")
    result = run("train", tmp_path, "--config", tmp_path / "broken.yaml")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'broken.yaml'}: line 2: ") and "tab" in result.stderr


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
