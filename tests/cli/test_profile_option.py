"""--profile of the commands that score, and what info says of profiles."""

import csv
import json

import pytest
from cli_runner import run, save_images
from diffad import DiffADPipeline
from tiny_pipeline import smooth_images, tiny_pipeline

SCORE = {"fusion": "tails", "smoothing_sigma": 1.0, "timesteps": (20,)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With a profile `fast` that has another map and verdict than its own score."""
    pipe = tiny_pipeline(**SCORE, weights={"mahalanobis": 1.0}, verdict={"mahalanobis": 1.0})
    pipe.set_calibrations({"fast": pipe.calibration.unfitted(weights={"residual": 1.0}, verdict={"residual": 2.0})})
    pipe.calibrate(smooth_images(24, seed=4))
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipe.save_pretrained(folder)
    return folder


def test_predict_scores_by_the_profile(model, tmp_path):
    images = save_images(tmp_path / "new", smooth_images(3, seed=6))
    pipe, paths = DiffADPipeline.from_pretrained(model), sorted(images.iterdir())
    scores = {}
    for name in ("balanced", "fast"):
        table = tmp_path / f"{name}.csv"
        result = run("predict", images, "--model", model, "--output", table, "--profile", name)
        assert result.exit_code == 0, result.stderr
        rows = list(csv.DictReader(table.open()))
        scores[name] = [float(row["score"]) for row in rows]
        expected = pipe(paths, profile=name)
        assert scores[name] == pytest.approx(expected.image_scores.tolist(), rel=1e-5)
        assert float(rows[0]["image_threshold"]) == pytest.approx(expected.image_thresholds[0])
    assert scores["balanced"] != scores["fast"]
    # The table of one profile is not taken for that of the other.
    again = run("predict", images, "--model", model, "--output", tmp_path / "fast.csv")
    assert again.exit_code and "of a run that differs" in again.stderr


def test_evaluate_measures_the_profile(model, parts, tmp_path):
    command = ("evaluate", parts, "--model", model, "--map-size", "32x32", "--no-report", "--output")
    results = {}
    for name in ("balanced", "fast"):
        assert run(*command, tmp_path / name, "--profile", name).exit_code == 0
        results[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert results["balanced"]["recipe"]["weights"] == {"mahalanobis": 1.0}
    assert results["fast"]["recipe"]["weights"] == {"residual": 1.0}
    assert results["balanced"]["model_digest"] != results["fast"]["model_digest"]


def test_info_lists_the_profiles(model):
    assert "profile fast:        map residual; score 2 residual\n" in run("info", model).stdout


@pytest.mark.parametrize("command", [("predict", "--output", "results.csv"), ("evaluate",)])
def test_a_profile_that_the_model_lacks_is_refused(command, model, parts):
    result = run(command[0], parts, *command[1:], "--model", model, "--profile", "best")
    assert result.exit_code and result.stderr == "error: the model has no profile 'best'; it has balanced, fast\n"


def test_calibrate_sets_the_thresholds_of_all_profiles(model, tmp_path):
    good = save_images(tmp_path / "good", smooth_images(12, seed=9))
    assert run("calibrate", model, good, "--output", tmp_path / "new").exit_code == 0
    before, after = DiffADPipeline.from_pretrained(model), DiffADPipeline.from_pretrained(tmp_path / "new")
    changed = run("calibrate", tmp_path / "new", save_images(tmp_path / "more", smooth_images(15, seed=10)))
    assert changed.exit_code == 0
    last = DiffADPipeline.from_pretrained(tmp_path / "new")
    for name in ("balanced", "fast"):
        counts = [pipe.calibration_of(name).config.num_calibration_images for pipe in (before, after, last)]
        assert len(set(counts)) == 3
