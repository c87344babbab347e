"""diffad update: the Gaussians of all images, thresholds of images that were not fitted, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad.cli import app
from diffad.jobs.history import read_history
from diffad.models.half_precision import round_to_half
from diffad.models.moments import StreamingMoments
from diffad.pipeline_saving import MOMENTS
from diffad.system.file_digest import file_digest
from diffad_training import train
from diffad_training.accumulation import accumulate_grid, accumulate_scales, grid_gaussians, scale_gaussians
from diffad_training.dataset import CachedDataset, build_cache
from diffad_training.good_images import good_samples, split_samples
from diffad_training.kept_moments import KeptMoments
from feedback_records import write_feedback
from PIL import Image
from tiny_pipeline import category_images, smooth_images
from tiny_training import tiny_config
from typer.testing import CliRunner

NEW = smooth_images(3, seed=40)


def run(*arguments):
    """Result of a diffad command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def save(folder: Path, images: list[Image.Image]) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:03d}.png")
    return folder


def loaded(folder: Path) -> DiffADPipeline:
    pipe = DiffADPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def new_parts(tmp_path_factory) -> Path:
    """Images of the production that the model was trained on, under names that it knows."""
    return save(tmp_path_factory.mktemp("new") / "good", smooth_images(12, seed=5))


@pytest.fixture(scope="session")
def updated(trained, new_parts, tmp_path_factory) -> Path:
    """The trained model after an update. Not to be changed."""
    model = copy_of(trained.folder, tmp_path_factory.mktemp("updated") / "model")
    result = run("update", model, new_parts)
    assert result.exit_code == 0, result.output
    return model


def copy_of(model: Path, folder: Path) -> Path:
    return shutil.copytree(model, folder, ignore=shutil.ignore_patterns("checkpoint-*", "logs"))


@pytest.fixture
def model(trained, tmp_path) -> Path:
    return copy_of(trained.folder, tmp_path / "model")


def test_every_gaussian_has_moments(trained):
    pipe, kept = loaded(trained.folder), KeptMoments.load(trained.folder)
    gaussians = grid_gaussians(pipe) | scale_gaussians(pipe)
    in_model = {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    means = [key for name in in_model for key in getattr(pipe, name).state_dict() if key.split(".")[-1] == "mean"]
    assert kept.terms == set(gaussians) and len(gaussians) == len(means)
    for term, gaussian in gaussians.items():
        moments = kept.moments(term, 0)
        assert moments.count == 10 and moments.scatter.dtype == torch.float64
        torch.testing.assert_close(moments.mean.float(), gaussian.mean, rtol=2e-3, atol=1e-4)


def test_an_update_is_a_fit_to_all_images(trained, new_parts, updated, tmp_path, monkeypatch):
    """The reference has seen no moments: values of all images, in the space of the model, and numpy."""
    (entry,) = read_history(updated)
    pipe = loaded(trained.folder)
    training, held_out = split_samples(good_samples(trained.config), trained.config)
    new = {sample.name: sample for sample in good_samples(tiny_config(new_parts, tmp_path))}
    assert (len(training), len(held_out), len(entry.fitted), len(entry.calibrated)) == (10, 3, 9, 3)
    record = lambda self, samples: values.setdefault(id(self), []).append(samples.double())  # noqa: E731
    monkeypatch.setattr(StreamingMoments, "update", record)
    values, seen = {}, []
    # In the batches of training and update, because networks round differently in others
    for samples, fitted in ((good_samples(trained.config), training), ([new[name] for name in entry.fitted], None)):
        folder, names = tmp_path / f"cache {len(seen)}", {sample.name for sample in fitted or samples}
        build_cache(samples, pipe.feature_extractor, (32, 32), folder)
        cached, group = CachedDataset(folder), [i for i, sample in enumerate(samples) if sample.name in names]
        with torch.no_grad():
            grids = accumulate_grid(pipe, cached, group, None)[0]
            seen.append(grids | accumulate_scales(pipe, cached, samples, group))
    monkeypatch.undo()
    kept = KeptMoments.load(updated)
    gaussians = grid_gaussians(pipe) | scale_gaussians(pipe)
    assert set(gaussians) >= {"mahalanobis", "residual", "feature_residual", "pixel_residual", "coarse", "detail"}
    for term, gaussian in gaussians.items():
        of_all = np.concatenate([values[id(moments[term])][0].numpy() for moments in seen])  # (19, P, D)
        merged = kept.moments(term, 0)
        assert merged.count == len(of_all) == 19
        np.testing.assert_allclose(merged.mean, of_all.mean(axis=0), rtol=1e-6, atol=1e-9)
        for position in range(0, of_all.shape[1], 3):
            expected = np.cov(of_all[:, position].T)
            np.testing.assert_allclose(merged.covariance[position], expected, rtol=1e-6, atol=1e-7)  # of values around 1
        at_once = gaussian.new_moments()
        at_once.update(torch.from_numpy(of_all))
        gaussian.fit(at_once)
        round_to_half(gaussian)
    # Every score that the model has
    pipe.calibrate([s.read for s in [*held_out, *(new[name] for name in entry.calibrated)]])
    after = loaded(updated)
    assert set(after.profile_names) == {"balanced", "fast", "best", "gaussian"}
    for profile in after.profile_names:
        expected, got = (p(NEW, profile=profile, false_alarm_rate=0.4) for p in (pipe, after))
        np.testing.assert_allclose(got.image_scores, expected.image_scores, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(got.image_thresholds, expected.image_thresholds, rtol=1e-6, atol=1e-6)


def test_networks_stay_and_scores_change(trained, updated):
    before, after = loaded(trained.folder), loaded(updated)
    for name in ("unet", "feature_extractor", "references"):
        for a, b in zip(getattr(before, name).state_dict().values(), getattr(after, name).state_dict().values(), strict=True):
            assert a.equal(b)
    assert before.multiscale.neighbors.bank.equal(after.multiscale.neighbors.bank)
    assert not np.allclose(before(NEW, false_alarm_rate=0.4).image_scores, after(NEW, false_alarm_rate=0.4).image_scores)


def test_images_that_fit_never_calibrate(trained, new_parts, updated, tmp_path):
    (entry,) = read_history(updated)
    assert not set(entry.fitted) & set(entry.calibrated) and len(entry.fitted) + len(entry.calibrated) == 12
    kept = KeptMoments.load(updated)
    assert len(kept.fitted) == 19 and len(kept.held_out) == 6 and not kept.fitted & kept.held_out
    assert entry.model_before == loaded(trained.folder).digest and entry.model_after == loaded(updated).digest
    shown = run("info", updated).stdout
    assert "update 20" in shown and "9 new images fitted, 3 new images held out, 6 images calibrated on" in shown
    # Nor later, wherever they lie by then
    moved = shutil.copytree(new_parts, tmp_path / "moved")
    model = copy_of(updated, tmp_path / "model")
    again = run("update", model, moved)
    assert again.exit_code == 1 and "none of its 12 images is new to the model" in again.stderr
    calibrated = run("calibrate", model, moved)
    assert calibrated.exit_code == 0 and "calibrated on 3 good images" in calibrated.stdout
    assert [one.event for one in read_history(model)] == ["update", "calibration"]


def test_a_second_update_calibrates_on_all_held_out_so_far(updated, tmp_path):
    model = copy_of(updated, tmp_path / "model")
    more = save(tmp_path / "more", smooth_images(8, seed=6))
    assert run("update", model, more).exit_code == 0
    first, second = read_history(model)
    assert second.counts["images calibrated on"] == 3 + 3 + 2 and second.counts["images fitted in all"] == 25
    assert first.model_after == second.model_before
    # From the next one on only what came since
    last = save(tmp_path / "last", smooth_images(8, seed=7))
    assert run("update", model, last, "--calibrate-on-new").exit_code == 0
    assert read_history(model)[-1].counts["images calibrated on"] == 2
    shutil.rmtree(last)
    missing = run("update", model, save(tmp_path / "latest", smooth_images(8, seed=8)))
    assert missing.exit_code == 1 and "2 of the 2 images that the model was calibrated on are not there" in missing.stderr


def test_another_product_is_refused_unless_it_is_accepted(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    folder = save(tmp_path / "other", [Image.fromarray(pixels) for pixels in noise])
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    result = run("update", model, folder)
    assert result.exit_code == 1 and "not of the production that the model was calibrated on" in result.stderr
    assert "--accept-change takes them" in result.stderr
    assert before == {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert run("update", model, folder, "--accept-change").exit_code == 0
    (entry,) = read_history(model)
    assert entry.replaces and entry.counts["images calibrated on"] == entry.counts["new images held out"] == 20


def test_moments_are_needed_and_must_be_the_models(model, new_parts, tmp_path):
    kept = KeptMoments.load(model)
    kept.tensors["coarse.0.mean"] += 1
    kept.save(model)
    assert "its moments are not of its Gaussians (coarse)" in run("update", model, new_parts).stderr
    (model / MOMENTS).unlink()
    loaded(model)  # scores without
    result = run("update", model, new_parts)
    assert result.exit_code == 1 and "moments.safetensors: no such file" in result.stderr and "refit.py" in result.stderr


def test_a_failed_save_leaves_the_former_model(model, new_parts, monkeypatch):
    before = loaded(model).digest
    monkeypatch.setattr("diffad_training.update.write_history", lambda *args: 1 / 0)
    assert isinstance(run("update", model, new_parts).exception, ZeroDivisionError)
    assert loaded(model).digest == before and not read_history(model)
    assert len(KeptMoments.load(model).fitted) == 10


def test_the_operators_word(model, new_parts, tmp_path):
    """Missed defects are left out; wrongly rejected parts fit and never calibrate; alone they can't."""
    sample = shutil.copytree(new_parts, tmp_path / "sample")
    rejected = save(tmp_path / "rejected", smooth_images(5, seed=9))
    missed = [sample / "000.png", sample / "001.png"]
    reported = sorted(rejected.iterdir())[:4]
    feedback = write_feedback(tmp_path / "feedback.jsonl", missed=missed, wrongly_rejected=reported)
    result = run("update", model, sample, "--feedback", feedback, "--rejected", rejected)
    assert result.exit_code == 0, result.output
    (entry,) = read_history(model)
    assert entry.counts["defective by feedback"] == 2 and entry.counts["wrongly rejected fitted"] == 4
    assert not {"000.png", "001.png"} & {*entry.fitted, *entry.calibrated}
    kept = KeptMoments.load(model)
    assert kept.fitted >= {file_digest(path) for path in reported} and kept.moments("detail", 0).count == 10 + 8 + 4
    # They are no sample to calibrate on, neither here nor there
    more = save(tmp_path / "more", smooth_images(6, seed=10))
    feedback = write_feedback(tmp_path / "more.jsonl", wrongly_rejected=sorted(more.iterdir())[:4])
    for command in ("update", "calibrate"):
        refused = run(command, model, more, "--feedback", feedback)
        assert refused.exit_code == 1 and "4 of 6 images were reported as wrongly rejected" in refused.stderr
    assert "give it with --feedback" in run("update", model, more, "--rejected", rejected).stderr


def test_calibration_leaves_out_missed_defects(model, new_parts, tmp_path):
    feedback = write_feedback(tmp_path / "feedback.jsonl", missed=sorted(new_parts.iterdir())[:3])
    result = run("calibrate", model, new_parts, "--feedback", feedback)
    assert "3 of 12 images are defective by the feedback" in result.stdout and "calibrated on 9 good images" in result.stdout


def test_several_categories_have_moments_where_they_are_asked_for(tmp_path):
    for label, name in enumerate(("nut", "bolt")):
        save(tmp_path / "data" / name, category_images(10, 3, label))
        save(tmp_path / "new" / name, category_images(6, 8, label))
    settings = {"categories": ["nut", "bolt"], "profile": "gaussian", "profiles": ["gaussian"]}
    train.main(tiny_config(tmp_path / "data", tmp_path / "without", **settings))
    assert not (tmp_path / "without" / MOMENTS).exists()
    model = tmp_path / "model"
    train.main(tiny_config(tmp_path / "data", model, **settings, moments=True))
    former = KeptMoments.load(model)
    result = run("update", model, tmp_path / "new")
    assert result.exit_code == 0, result.output
    kept, pipe = KeptMoments.load(model), loaded(model)
    assert [kept.moments("coarse", c).count for c in (0, 1)] == [former.moments("coarse", c).count + 4 for c in (0, 1)]
    features, categories = kept.pooled
    assert len(features) == len(categories) == 24
    expected = pipe.discriminant.weight.clone()
    assert pipe.discriminant.fit(features, categories).weight.equal(expected)
    assert json.loads((model / "history.json").read_text())["history"][0]["counts"]["new images fitted"] == 8
