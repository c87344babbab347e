"""refit.py: everything but the UNet anew, from the same images."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad.data import DataError
from diffad.system.atomic import writing
from diffad_training import refit as refit_command
from diffad_training.checkpoints import AVERAGED
from diffad_training.refit import refit
from safetensors.torch import load_file
from tiny_pipeline import smooth_images
from tiny_training import assert_equal_models, unet_weights


def run(monkeypatch, *arguments) -> None:
    """Runs the command."""
    monkeypatch.setattr(sys, "argv", ["refit.py", *map(str, arguments)])
    refit_command.main()


def test_refit_with_its_own_settings_is_the_model_itself(trained, tmp_path, monkeypatch, capsys):
    output = tmp_path / "again"
    run(monkeypatch, trained.folder, "--output_dir", output)
    assert_equal_models(trained.folder, output)
    assert f"saved the pipeline to {output}" in capsys.readouterr().out
    before, after = (json.loads((folder / "training_summary.json").read_text()) for folder in (trained.folder, output))
    assert after["map_choice"] == before["map_choice"] and after["steps"] == before["steps"]
    assert after["refit_seconds"] > 0 and "refit_seconds" not in before
    assert (output / "held_out.json").read_text() == (trained.folder / "held_out.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]  # the cache is gone


def test_refit_to_the_papers_score(trained, tmp_path, monkeypatch):
    output = tmp_path / "paper"
    run(monkeypatch, trained.folder, "--output_dir", output, "--score", "paper")
    pipe = DiffADPipeline.from_pretrained(output)
    score = pipe.calibration.score_config
    assert dict(score.weights) == {"kl": 0.5, "feature": 0.5} and score.per_image and score.top_k == 64
    assert pipe.multiscale is None and not score.verdict
    assert "map_choice" not in json.loads((output / "training_summary.json").read_text())
    before, after = unet_weights(trained.folder), unet_weights(output)
    assert all(after[name].equal(before[name]) for name in before)
    assert json.loads((output / "training_config.json").read_text())["score"] == "paper"


def test_folder_in_use_is_kept_unless_it_may_be_overwritten(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    config = dataclasses.replace(trained.config, output_dir=str(tmp_path))
    with pytest.raises(DataError, match="exists; name another --output_dir, or --overwrite it"):
        refit(trained.folder, config)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    short = {"score": "paper", "choose_map": None, "overwrite": True}
    refit(trained.folder, dataclasses.replace(config, **short))
    assert (tmp_path / "model_index.json").is_file() and (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("without", [["digest.json"], []], ids=["of an early release", "damaged"])
def test_model_without_a_record_of_held_out_images_is_refused(without, trained, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    left_out = shutil.ignore_patterns("checkpoint-*", "logs", "held_out.json", *without)
    shutil.copytree(trained.folder, model, ignore=left_out)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, model, "--output_dir", tmp_path / "out")
    assert stopped.value.code == 2 and "held_out.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_of_the_unet_are_no_options(trained, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, trained.folder, "--output_dir", tmp_path / "out", "--resolution", "64")
    assert "unrecognized arguments: --resolution" in capsys.readouterr().err


def test_a_checkpoint_becomes_a_model(trained, tmp_path, monkeypatch):
    output, checkpoint = tmp_path / "so-far", trained.folder / "checkpoint-20"
    run(monkeypatch, trained.folder, "--output_dir", output, "--checkpoint", checkpoint, "--choose_map", "false")
    averaged, weights = load_file(checkpoint / AVERAGED), unet_weights(output)
    for name, values in averaged.items():
        torch.testing.assert_close(weights[name].float(), values, rtol=1e-3, atol=1e-6)  # large ones are rounded to 16 bits
    assert not all(values.equal(weights[name]) for name, values in unet_weights(trained.folder).items())
    pipe = DiffADPipeline.from_pretrained(output)
    assert pipe.calibration.is_fitted and np.isfinite(pipe(smooth_images(2, seed=3), false_alarm_rate=0.4).image_scores).all()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("latest", "no checkpoint in"), ("missing", "no such folder"), ("another", "another run .* .learning_rate 1.0 there")],
)
def test_a_checkpoint_that_is_not_the_models_is_refused(checkpoint, message, trained, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained.folder, model, ignore=shutil.ignore_patterns("checkpoint-*", "logs"))
    if checkpoint == "another":
        checkpoint = shutil.copytree(trained.folder / "checkpoint-20", tmp_path / "another")
        (checkpoint / "digest.json").unlink()
        record = json.loads((checkpoint / "run.json").read_text())
        record["fingerprint"]["settings"]["learning_rate"] = 1.0
        with writing(checkpoint, whole=False) as unfinished:
            (unfinished / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=message):
        refit(model, dataclasses.replace(trained.config, output_dir=str(tmp_path / "out")), str(checkpoint))
    assert not (tmp_path / "out").exists()
