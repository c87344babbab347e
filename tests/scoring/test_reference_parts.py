"""What calibrations keep of their images for the monitor: of the right images, in the order of the scores."""

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad.imaging.image_statistics import STATISTICS, look_of, statistics_of
from diffad.scoring.drawn_images import drawn_images
from diffad.scoring.fitting import split_calibration_images
from diffad.scoring.inputs import InputReader
from tiny_pipeline import category_images, smooth_images, tiled_pipeline, tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    return tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)


def assert_is_of(parts, pipe: DiffADPipeline, images, category: int = 0, scores=None) -> None:
    """Compares what was kept with the images that it should be of, one by one."""
    categories = None if pipe.category_names is None else [category] * len(images)
    kept = pipe.calibration.calibration_scores_of(category) if scores is None else scores
    scores = pipe(images, batch_size=1, categories=categories).image_scores
    order = np.argsort(scores)
    np.testing.assert_allclose(kept, scores[order], rtol=1e-4)
    with torch.no_grad():
        expected = InputReader(pipe.scorer, None, pipe.device).pooled_features(images, 1).numpy()
    np.testing.assert_allclose(parts.features, expected[order], atol=1e-5)
    looks = [look_of(images[i]) for i in order]
    mean = np.mean([look.square for look in looks], axis=0)
    np.testing.assert_allclose(parts.mean_square, mean if len(images) >= 8 else 0 * mean, rtol=1e-5)
    statistics = [[statistics_of(look, mean)[name] for name in STATISTICS] for look in looks]
    np.testing.assert_allclose(parts.statistics, statistics, rtol=1e-4, atol=1e-4)
    assert parts.statistics_by_name[0] == pytest.approx(dict(zip(STATISTICS, statistics[0])), rel=1e-4, abs=1e-4)


def test_they_are_of_the_images_behind_the_thresholds(pipe):
    images = smooth_images(24, seed=3)
    pipe.calibrate(images)
    _, (groups,) = split_calibration_images(pipe.calibration, np.zeros(24, dtype=int))
    assert_is_of(pipe.calibration.reference_parts(), pipe, [images[i] for (i,) in groups])


def test_of_a_group_one_image_is_kept_that_is_drawn_whatever_its_score_is(pipe):
    images = smooth_images(24, seed=4)
    names = [f"part {i // 2}" for i in range(24)]
    pipe.calibrate(images, groups=names)
    _, (groups,) = split_calibration_images(pipe.calibration, np.zeros(24, dtype=int), names)
    drawn = drawn_images(groups, pipe.calibration.score_config.seed)
    single = pipe.calibration.single_scores_of()
    assert_is_of(pipe.calibration.reference_parts(), pipe, [images[i] for i in drawn], scores=single)
    assert (single <= pipe.calibration.calibration_scores_of()).all()


def test_each_category_has_its_own():
    pipe = tiny_pipeline(("nut", "bolt"), weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    images = [*category_images(8, 5, 0), *category_images(10, 6, 1)]
    of_image = np.array([0] * 8 + [1] * 10)
    pipe.calibrate(images, categories=of_image.tolist())
    _, of_categories = split_calibration_images(pipe.calibration, of_image, category_names=pipe.category_names)
    for category, groups in enumerate(of_categories):
        parts = pipe.calibration.reference_parts(category)
        assert_is_of(parts, pipe, [images[i] for (i,) in groups], category)


def test_calibration_passes_each_image_through_the_network_once(pipe):
    passed = []
    hook = pipe.feature_extractor.network.register_forward_hook(lambda module, inputs, output: passed.append(len(inputs[0])))
    pipe.calibrate(smooth_images(24, seed=5))
    hook.remove()
    assert sum(passed) == 24


@pytest.mark.parametrize("count, is_kept", [(8, False), (9, True)])  # one of them gives the statistics
def test_no_picture_is_kept_of_few_images(pipe, count, is_kept):
    pipe.calibrate(smooth_images(count, seed=6))
    parts = pipe.calibration.reference_parts()
    assert len(parts.features) == count - 1 and parts.mean_square.any() == is_kept


def test_they_are_saved_with_the_model_and_belong_to_its_digest(pipe, tmp_path):
    pipe.calibrate(smooth_images(24, seed=7))
    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    expected, found = pipe.calibration.reference_parts(), loaded.calibration.reference_parts()
    for name in ("features", "statistics", "mean_square"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert loaded.digest == pipe.digest
    loaded.calibration.calibration_features[0, 0] += 1
    assert loaded.digest != pipe.digest


def test_a_score_that_looks_at_no_features_has_none():
    pipe = tiny_pipeline(weights={"rgb": 1.0}, smoothing_sigma=1.0)
    images = smooth_images(8, seed=8)
    pipe.calibrate(images)
    assert pipe.calibration.reference_parts() is None and "calibration_features" not in pipe.calibration.state_dict()
    assert pipe(images, return_features=True).pooled_features is None


@pytest.mark.parametrize("tiled", [False, True])
def test_scoring_returns_the_same_features(pipe, tiled):
    images = smooth_images(5, seed=9, size=(80, 60))
    if tiled:
        pipe = tiled_pipeline()
        pipe.calibrate(images, short_side=48)
    else:
        pipe.calibrate(smooth_images(24, seed=7))
    with torch.no_grad():
        expected = InputReader(pipe.scorer, None, pipe.device).pooled_features(images, 3).numpy()
    output = pipe(images, batch_size=2, return_features=True)
    np.testing.assert_allclose(output.pooled_features, expected, atol=1e-5)
    assert pipe(images).pooled_features is None
    assert pipe(images, return_features=True, output_type="pt").pooled_features.shape == expected.shape
