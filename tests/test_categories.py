"""One model of several categories: the category selects Gaussians and statistics; it is given, or recognised."""

import json
import warnings

import numpy as np
import pytest
import torch
from diffad import Calibration, DiffADPipeline, LinearDiscriminant, PadimGaussian
from diffad.evaluation.report import report_from_predictions
from diffad.hub.push import export_repo
from diffad.jobs.predict import PredictionSettings, predict_folder
from diffad.jobs.summary import summarize_model
from diffad.jobs.table import read_rows
from diffad.scoring.calibration import TermStatistics, split_for_statistics
from tiny_pipeline import category_images, smooth_images, tiled_pipeline, tiny_pipeline

NAMES = ("nut", "bolt", "washer")
LABELS = [0, 1, 2] * 2


def mixed_images(seed: int = 30) -> list:
    return [category_images(1, seed + i, label)[0] for i, label in enumerate(LABELS)]


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    pipe = tiny_pipeline(NAMES, smoothing_sigma=1.0)
    normals = [image for label in range(3) for image in category_images(19 + label, 4, label)]
    pipe.calibrate(normals, categories=[name for i, name in enumerate(NAMES) for _ in range(19 + i)])
    return pipe


# State of each class


def test_gaussians_of_several_classes_are_those_fitted_alone():
    torch.manual_seed(0)
    features = [torch.randn(20, 5, 2, 3) * (1 + label) + label for label in range(3)]
    together = PadimGaussian(5, grid=(2, 3), num_dims=4, num_classes=3)
    alone = [PadimGaussian(5, grid=(2, 3), num_dims=4) for _ in range(3)]
    for label in (2, 0, 1):
        moments = together.new_moments()
        together.accumulate(moments, features[label])
        together.fit(moments, label)
        alone[label].fit(moments)
    test = torch.randn(6, 5, 2, 3)
    distances = together(test, torch.tensor(LABELS))
    for i, label in enumerate(LABELS):
        torch.testing.assert_close(distances[i], alone[label](test[i : i + 1])[0])
    with pytest.raises(ValueError, match="Gaussians of 3 classes need the category"):
        together(test)


def test_gradient_reaches_the_features_of_every_class():
    gaussian = PadimGaussian(2, grid=None, num_classes=2)
    gaussian.whitening.copy_(torch.eye(2) * torch.tensor([1.0, 3.0]).view(2, 1, 1))
    features = torch.ones(3, 2, 1, 1, requires_grad=True)
    gaussian(features, torch.tensor([1, 0, 1])).sum().backward()
    assert features.grad[:, 0, 0, 0].tolist() == [18, 2, 18]


def test_calibration_of_several_categories_is_that_of_each_alone():
    rng = np.random.default_rng(0)
    settings = {"timesteps": (20,), "weights": {"kl": 0.3, "mahalanobis": 0.7}}
    together = Calibration(num_calibration_images=(0, 0, 0), **settings)
    alone = [Calibration(**settings) for _ in range(3)]
    names = together.score_config.term_map_names
    scores = [rng.normal(size=count) for count in (6, 3, 11)]
    for category, calibration in enumerate(alone):
        maps = torch.from_numpy(rng.normal(size=(len(names), 3, 4))).float() * (1 + category)
        statistics = TermStatistics.of(maps, together.inside((3, 4)))
        for fitted, place in ((together, category), (calibration, 0)):
            fitted.set_statistics(statistics, place)
        calibration.set_scores([scores[category]], [2 * scores[category]])
    together.set_scores(scores, [2 * values for values in scores])
    assert together.images_per_category == [6, 3, 11] and together.is_fitted
    seen, categories = rng.normal(size=30), rng.integers(0, 3, size=30)
    p_values = together.p_values(seen, categories)
    raw = torch.randn(6, 3, 4)
    standardized = together.standardize({"mahalanobis": raw}, torch.tensor(LABELS))["mahalanobis"]
    for category, calibration in enumerate(alone):
        assert together.image_threshold(0.5, category) == calibration.image_threshold(0.5)
        assert together.pixel_threshold(0.5, category) == calibration.pixel_threshold(0.5)
        chosen = categories == category
        np.testing.assert_array_equal(p_values[chosen], calibration.p_values(seen[chosen]))
        indices = [i for i, other in enumerate(LABELS) if other == category]
        assert torch.equal(standardized[indices], calibration.standardize({"mahalanobis": raw[indices]})["mahalanobis"])
    assert len({together.image_threshold(0.5, category) for category in range(3)}) == 3


# Recognition


@pytest.mark.parametrize("classes", [2, 4])
def test_discriminant_is_the_class_of_the_nearest_mean_in_the_whitened_space(classes):
    rng = np.random.default_rng(classes)
    counts = [3000 * 2**i for i in range(classes)]  # enough for shrinkage to vanish, and far from balanced
    mixing, means = np.eye(3) + 0.3 * rng.normal(size=(3, 3)), rng.normal(size=(classes, 3))
    labels = np.repeat(np.arange(classes), counts)
    pooled = means[labels] + rng.normal(size=(len(labels), 3)) @ mixing
    discriminant = LinearDiscriminant(3, tuple("abcd"[:classes])).fit(pooled, labels)

    precision = np.linalg.inv(np.mean([np.cov(pooled[labels == k], rowvar=False) for k in range(classes)], axis=0))
    centres = np.stack([pooled[labels == k].mean(axis=0) for k in range(classes)])
    test = rng.normal(size=(500, 3)) * 2
    deviation = test[:, None] - centres
    distance = np.einsum("nkd,de,nke->nk", deviation, precision, deviation)
    maps = torch.from_numpy(test).float()[:, :, None, None] + torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)  # mean: test
    scores = discriminant(maps).numpy()
    assert scores.shape == (500, classes)
    assert (scores.argmax(axis=1) == distance.argmin(axis=1)).mean() > 0.98
    # Up to a constant of each image, the scores are -distance / 2.
    np.testing.assert_allclose(scores - scores[:, :1], -(distance - distance[:, :1]) / 2, rtol=0.1, atol=0.3)


def test_unknown_categories_are_recognised_and_named(pipe):
    images = mixed_images()
    images[4] = images[4].copy()
    images[4].paste((255, 0, 0), (4, 4, 12, 12))  # a defect does not change what the part is
    inferred = pipe(images, batch_size=4)
    assert inferred.categories == [NAMES[label] for label in LABELS]
    given = pipe(images, batch_size=4, categories=LABELS)
    np.testing.assert_array_equal(inferred.image_scores, given.image_scores)
    np.testing.assert_array_equal(inferred.anomaly_maps, given.anomaly_maps)


# Pipeline


def test_batch_of_mixed_classes_equals_one_by_one(pipe):
    images = mixed_images()
    together = pipe(images, categories=LABELS, false_alarm_rate=0.1, return_term_maps=True)
    for i, label in enumerate(LABELS):
        alone = pipe(images[i], categories=[label], false_alarm_rate=0.1, return_term_maps=True)
        assert together.image_scores[i] == pytest.approx(alone.image_scores[0], rel=1e-4)
        assert together.p_values[i] == alone.p_values[0] and together.is_defective[i] == alone.is_defective[0]
        np.testing.assert_allclose(together.anomaly_maps[i], alone.anomaly_maps[0], rtol=1e-3, atol=1e-4)
        for name, partial in together.term_maps[i].items():
            np.testing.assert_allclose(partial, alone.term_maps[0][name], rtol=1e-3, atol=1e-3)


def test_verdicts_follow_the_thresholds_of_each_images_class(pipe):
    images = mixed_images()
    pipe.calibration.calibration_scores[:18] += 1000  # of the first class only
    try:
        output = pipe(images, categories=LABELS, false_alarm_rate=0.1)
    finally:
        pipe.calibration.calibration_scores[:18] -= 1000
    for i, label in enumerate(LABELS):
        assert output.pixel_thresholds[i] == pipe.calibration.pixel_threshold(0.1, label)
        assert output.image_thresholds[i] == pipe.calibration.image_threshold(0.1, label) + 1000 * (label == 0)
        assert output.is_defective[i] == (label > 0 and output.image_scores[i] > pipe.calibration.image_threshold(0.1, label))
        assert (output.masks[i] == (output.anomaly_maps[i] > pipe.calibration.pixel_threshold(0.1, label))).all()
        assert (output.p_values[i] == 1) == (label == 0)


def test_images_are_repaired_by_the_thresholds_of_their_class(pipe):
    images = mixed_images()[:2]
    thresholds = pipe.calibration.calibration_scores.clone()
    for lowered in (0, 1):
        pipe.calibration.calibration_scores[slice(18) if lowered == 0 else slice(18, None)] = -1000
        try:
            output = pipe.reconstruct(images, categories=[0, 1], timesteps=(50,))
        finally:
            pipe.calibration.calibration_scores.copy_(thresholds)
        assert [change.any() for change in output.difference_maps] == [lowered == 0, lowered == 1]


def test_default_rate_is_the_one_that_each_images_category_supports_whatever_is_scored_together(tmp_path):
    pipe = tiny_pipeline(("nut", "bolt"), smoothing_sigma=1.0)
    pipe.calibrate([*category_images(4, 4, 0), *category_images(25, 4, 1)], categories=["nut"] * 4 + ["bolt"] * 25)
    assert pipe.calibration.images_per_category == [3, 23]
    nut, bolt = category_images(1, 9, 0)[0], category_images(1, 9, 1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = pipe(bolt, categories="bolt")
    assert alone.false_alarm_rates == [0.05]
    with pytest.warns(UserWarning, match="3 calibration images of category 0 .* 0.25 at best"):
        together = pipe([nut, bolt], categories=["nut", "bolt"])
    assert together.false_alarm_rates.tolist() == [0.25, 0.05]
    assert together.image_thresholds[0] == pipe.calibration.image_threshold(0.25, 0)
    assert together.image_thresholds[1] == alone.image_thresholds[0] == pipe.calibration.image_threshold(0.05, 1)
    assert pipe.reconstruct([nut, bolt], timesteps=(50,)).images
    nut.save(tmp_path / "nut.png")
    bolt.save(tmp_path / "bolt.png")
    with pytest.warns(UserWarning, match="category 0"):
        predict_folder(pipe, tmp_path, tmp_path / "table.jsonl")
    rates = {row["category"]: row["false_alarm_rate"] for row in read_rows(tmp_path / "table.jsonl")}
    assert rates == {"nut": 0.25, "bolt": 0.05}
    for labels in ("nut", None):  # what is recognised may be either
        with pytest.raises(ValueError, match="needs 19 .*there are 3"):
            pipe(bolt, categories=labels, false_alarm_rate=0.05)


def test_normal_images_are_standardised_within_their_class(pipe):
    for label in range(3):
        images = category_images(19 + label, 4, label)
        of_statistics, of_thresholds = split_for_statistics(np.arange(19 + label), seed=0)
        assert pipe.calibration.images_per_category[label] == len(of_thresholds)
        images = [images[i] for i in of_statistics]
        partials = pipe(images, categories=label, false_alarm_rate=0.1, return_term_maps=True).term_maps
        for name in pipe.calibration.term_map_names:
            values = np.stack([partial[name] for partial in partials])
            assert values.mean() == pytest.approx(0, abs=1e-3) and values.std() == pytest.approx(1, rel=1e-3)


def test_labels_may_be_names_indices_or_one_for_all(pipe):
    images = mixed_images()[1::3]
    expected = pipe(images, categories=[1, 1])
    assert expected.categories == ["bolt", "bolt"] and pipe.category_names == list(NAMES)
    for labels in ("bolt", 1, ["bolt", 1], np.array([1, 1])):
        np.testing.assert_array_equal(pipe(images, categories=labels).image_scores, expected.image_scores)
    assert not np.allclose(pipe(images, categories="nut").image_scores, expected.image_scores)
    with pytest.raises(ValueError, match="'screw' is none of nut, bolt, washer"):
        pipe(images, categories="screw")
    with pytest.raises(ValueError, match="3 is none of nut"):
        pipe(images, categories=[0, 3])
    with pytest.raises(ValueError, match="1 categories for 2 images"):
        pipe(images, categories=["nut"])


def test_recalibration_needs_every_category(pipe):
    before = pipe.calibration
    with pytest.raises(ValueError, match="at least 2 good images of bolt, got 0"):
        pipe.calibrate(smooth_images(3, seed=1), categories="nut")
    assert pipe.calibration is before


def test_predictions_name_the_category_and_reports_take_one(pipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(mixed_images()[:3]):
        image.save(folder / f"{i}.png")
    predict_folder(pipe, folder, tmp_path / "all.jsonl", PredictionSettings(0.1, overlays=tmp_path / "overlays"))
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["category"] for row in rows] == list(NAMES)
    with pytest.raises(ValueError, match="bolt, nut, washer; report on each category apart"):
        report_from_predictions(pipe, rows, folder, 0.1)
    report = report_from_predictions(pipe, rows[1:2], folder, 0.1)
    assert report.image_threshold == pipe.calibration.image_threshold(0.1, 1) and len(report.calibration_scores) == 18
    assert report.rows[0].pictures().input.size == (32, 32)
    # A rate that this category supports, and another one does not.
    assert report_from_predictions(pipe, rows[2:], folder, 0.05).false_alarm_rate == 0.05

    predict_folder(pipe, folder, tmp_path / "bolt.jsonl", PredictionSettings(0.1, category="bolt"))
    rows = [json.loads(line) for line in (tmp_path / "bolt.jsonl").read_text().splitlines()]
    expected = pipe(mixed_images()[:3], categories="bolt", false_alarm_rate=0.1).image_scores
    np.testing.assert_allclose([row["score"] for row in rows], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="'screw' is none of"):
        predict_folder(pipe, folder, tmp_path / "screw.jsonl", PredictionSettings(0.1, category="screw"))


def test_summary_and_repository_name_the_categories(pipe, tmp_path):
    summary = summarize_model(pipe)
    assert summary["categories"] == "nut, bolt, washer" and summary["held-out normals"] == "18, 18, 19"
    threshold = f"{pipe.calibration.image_threshold(0.05, 2):.4g}"
    assert summary["threshold at 5%, washer"].startswith(threshold) and summary["threshold at 5%, nut"].startswith("none")
    export_repo(pipe, tmp_path / "repository")
    card = (tmp_path / "repository" / "README.md").read_text()
    assert "One model of nut, bolt, washer" in card and "55 calibration images (nut 18, bolt 18, washer 19)" in card
    assert DiffADPipeline.from_pretrained(tmp_path / "repository").category_names == list(NAMES)


def test_large_image_is_recognised_by_its_tiles():
    pipe = tiled_pipeline(NAMES, short_side=64)
    normals = [image for label in range(3) for image in category_images(2, 4, label, size=(96, 64))]
    pipe.calibrate(normals, categories=[0, 0, 1, 1, 2, 2])
    images = [category_images(1, seed, label, size=(96, 64))[0] for seed, label in ((3, 2), (4, 0), (5, 1))]
    for batch_size in (1, 5):
        assert pipe(images, batch_size=batch_size).categories == ["washer", "nut", "bolt"]


def test_saved_model_scores_and_names_the_same(pipe, tmp_path, no_network):
    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = mixed_images()
    expected, actual = pipe(images, false_alarm_rate=0.1), loaded(images, false_alarm_rate=0.1)
    assert actual.categories == expected.categories
    np.testing.assert_array_equal(actual.image_scores, expected.image_scores)
    np.testing.assert_array_equal(actual.p_values, expected.p_values)
    np.testing.assert_array_equal(actual.is_defective, expected.is_defective)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_model_of_one_category_saved_before_there_were_several_still_loads(tmp_path):
    pipe = tiny_pipeline(smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(19, seed=4))
    pipe.save_pretrained(tmp_path)
    for file, entry in (("model_index.json", "discriminant"), ("gaussian/config.json", "num_classes")):
        config = json.loads((tmp_path / file).read_text())
        del config[entry]
        (tmp_path / file).write_text(json.dumps(config))
    (tmp_path / "digest.json").unlink()  # as there was none
    assert json.loads((tmp_path / "calibration" / "config.json").read_text())["num_calibration_images"] == 18
    assert pipe.gaussian.mean.shape[0] == 16 and pipe.calibration.term_mean.shape == (11,)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    images = smooth_images(3, seed=5)
    np.testing.assert_array_equal(loaded(images).image_scores, pipe(images).image_scores)
    assert loaded(images).categories is None and loaded.category_names is None
