"""The first model of a run: usable before the diffusion model is trained, said to be unfinished, not taken for the end."""

import dataclasses
import json
import re

import numpy as np
import pytest
from diffad import DiffADPipeline
from diffad.cli import app
from diffad.data import DataError
from diffad.jobs.model_summary import is_unfinished
from diffad.scoring.profiles import PROFILES
from diffad_training import refit, train
from diffad_training.conversion import SettingsError
from diffad_training.run_folder import RunFolder
from tiny_pipeline import category_images, save_test_images, smooth_images
from tiny_training import assert_equal_models, tiny_config
from typer.testing import CliRunner

NEW = smooth_images(3, seed=40)


def run(*arguments):
    """Result of a diffad command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def interrupted(config) -> None:
    """Trains until the first step, which fails as a kill would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "training_loss", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(config)


@pytest.fixture
def first(good_images, tmp_path):
    """Settings of a run that ended before its first step."""
    config = tiny_config(good_images, tmp_path / "model", profiles=list(PROFILES))
    interrupted(config)
    return config


def loaded(folder) -> DiffADPipeline:
    pipe = DiffADPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_model_is_there_before_the_first_step(first, tmp_path, capsys):
    folder = tmp_path / "model"
    assert is_unfinished(folder)
    summary = json.loads((folder / "training_summary.json").read_text())
    assert summary["finished"] is False and summary["steps"] == 0 and "map_choice" not in summary
    pipe = loaded(folder)
    assert pipe.profile_names == ["gaussian"] and pipe.residual_gaussian is None
    assert not (folder / "residual_gaussian").exists() and not (folder / "profiles").exists()
    assert pipe.calibration.config.num_calibration_images == 2
    passes = []
    pipe.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    output = pipe(NEW, false_alarm_rate=0.4, return_term_maps=True)
    assert not passes and np.isfinite(output.image_scores).all()
    assert set(output.term_maps[0]) == {"mahalanobis", "coarse", "detail", "coarse_detail"}
    np.testing.assert_array_equal(pipe(NEW, profile="gaussian").image_scores, output.image_scores)
    with pytest.raises(ValueError, match="no profile 'balanced'; it has gaussian$"):
        pipe(NEW, profile="balanced")
    with pytest.raises(ValueError, match="its diffusion model is not trained"):
        pipe.reconstruct(NEW[0])
    with pytest.raises(ValueError, match="terms .'residual'., but the model's diffusion model is not trained"):
        pipe.calibrate(NEW, weights={"residual": 1.0})
    printed = run("info", folder).stdout
    assert "unfinished" in printed and "not trained" in printed


def test_it_scores_as_the_finished_models_profile(first, tmp_path, capsys):
    early = loaded(tmp_path / "model")(NEW, false_alarm_rate=0.4)
    train.main(first)
    printed = capsys.readouterr().out
    assert re.search(r"saved a first model \(profile gaussian\) to .*model after \d+ s; training goes on", printed)
    pipe = loaded(tmp_path / "model")
    assert pipe.profile_names == ["balanced", "fast", "best", "gaussian"] and not is_unfinished(tmp_path / "model")
    assert "unfinished" not in run("info", tmp_path / "model").stdout
    late = pipe(NEW, profile="gaussian", false_alarm_rate=0.4)
    np.testing.assert_allclose(late.image_scores, early.image_scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(late.image_thresholds, early.image_thresholds, rtol=1e-4, atol=1e-4)


def test_an_unfinished_model_is_no_finished_run(first, tmp_path):
    folder = tmp_path / "model"
    assert not RunFolder(folder).has_finished_model()
    train.main(dataclasses.replace(first, resume_from_checkpoint="latest"))
    assert not is_unfinished(folder) and RunFolder(folder).has_finished_model()
    with pytest.raises(DataError, match="holds this run"):
        train.main(first)


def test_another_run_may_begin_where_one_never_came_further(first, tmp_path):
    interrupted(dataclasses.replace(first, seed=3))
    assert json.loads((tmp_path / "model" / "training_config.json").read_text())["seed"] == 3
    assert loaded(tmp_path / "model").calibration.config.seed == 3


def test_a_resumed_run_keeps_the_first_model_and_ends_as_an_uninterrupted_one(first, good_images, tmp_path, monkeypatch):
    folder, whole = tmp_path / "model", dataclasses.replace(first, output_dir=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit_pipeline", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(first)
    before = (folder / "training_summary.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit_pipeline", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(dataclasses.replace(first, resume_from_checkpoint="latest"))
    assert (folder / "training_summary.json").stat().st_mtime_ns == before and is_unfinished(folder)
    train.main(dataclasses.replace(first, resume_from_checkpoint="latest"))
    train.main(whole)
    assert_equal_models(folder, tmp_path / "whole")


def test_a_finished_model_is_not_replaced_by_an_unfinished_one(first, tmp_path):
    train.main(first)
    kept = (tmp_path / "model" / "training_summary.json").read_bytes()
    interrupted(dataclasses.replace(first, overwrite=True, seed=5))
    assert (tmp_path / "model" / "training_summary.json").read_bytes() == kept
    assert loaded(tmp_path / "model").profile_names[0] == "balanced"


def test_training_for_the_gaussian_profile_ends_with_the_first_model(good_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "training_loss", lambda *args: 1 / 0)
    config = tiny_config(good_images, tmp_path / "model", profile="gaussian", profiles=["gaussian"])
    train.main(config)
    assert re.search(r"saved the pipeline to .*model after \d+ s$", capsys.readouterr().out.strip())
    assert loaded(tmp_path / "model").profile_names == ["gaussian"] and not is_unfinished(tmp_path / "model")
    assert not list((tmp_path / "model").glob("checkpoint-*")) and not (tmp_path / "model" / "cache").exists()
    train.main(dataclasses.replace(config, resume_from_checkpoint="latest"))
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(DataError, match="holds another run .profile gaussian there, balanced now."):
        train.main(dataclasses.replace(config, profile="balanced"))
    # What is measured of it is what it has.
    parts = save_test_images(tmp_path / "parts", defective=2)
    evaluated = run("evaluate", parts, "--model", tmp_path / "model", "--output", tmp_path / "out", "--map-size", "32x32")
    assert evaluated.exit_code == 0, evaluated.stderr
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]
    assert set(scores) == {"ensemble", "mahalanobis", "coarse", "detail", "coarse_detail"}
    with pytest.raises(DataError, match="diffusion model is not trained"):
        refit.refit(tmp_path / "model", dataclasses.replace(config, profile="balanced", output_dir=str(tmp_path / "refit")))


def test_models_of_several_categories_have_a_first_one_too(tmp_path):
    for label, name in enumerate(("nut", "bolt")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, image in enumerate(category_images(10, 3, label)):
            image.save(tmp_path / "data" / name / f"{i}.png")
    train.main(
        tiny_config(
            tmp_path / "data", tmp_path / "model", categories=["nut", "bolt"], profile="gaussian", profiles=["gaussian"]
        )
    )
    output = loaded(tmp_path / "model")([*category_images(2, 9, 0), *category_images(2, 9, 1)], false_alarm_rate=0.5)
    assert len(output.categories) == 4 and np.isfinite(output.image_scores).all()


@pytest.mark.parametrize(
    "changes", [{"score": "paper"}, {"short_side": 48, "shared_gaussian": True}, {"profiles": ["fast"]}], ids=str
)
def test_without_the_profile_there_is_no_first_model(changes, good_images, tmp_path):
    with pytest.raises(SettingsError, match="^profile: gaussian must be one of profiles"):
        tiny_config(good_images, tmp_path, **changes, profile="gaussian")
    interrupted(tiny_config(good_images, tmp_path / "model", **changes))
    assert not (tmp_path / "model" / "model_index.json").exists()
