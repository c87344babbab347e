"""Calibration images that come in groups, such as several photographs of one part: thresholds count the groups."""

import numpy as np
import pytest
from diffad import DiffADPipeline
from diffad.scoring.conformal import conformal_threshold
from diffad.scoring.drawn_images import drawn_images
from diffad.scoring.statistics import split_for_statistics
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)


def test_a_group_counts_once_with_its_highest_score(pipe):
    images = smooth_images(24, seed=4)
    groups = [f"part {i % 8}" for i in range(24)]
    calibration = pipe.calibrate(images, groups=groups)
    of_statistics, of_thresholds = split_for_statistics(np.arange(8), seed=0, share=0.1)
    assert calibration.config.num_calibration_images == len(of_thresholds) == 7

    scores = pipe(images, false_alarm_rate=0.5).image_scores
    highest = sorted(scores[[i for i in range(24) if i % 8 == group]].max() for group in of_thresholds)
    np.testing.assert_allclose(calibration.calibration_scores, highest, rtol=1e-4, atol=1e-5)
    # The statistics come from the images of the other group alone.
    maps = pipe([images[i] for i in range(24) if i % 8 in of_statistics], false_alarm_rate=0.5, return_term_maps=True).term_maps
    values = np.stack([of_image["mahalanobis"] for of_image in maps])
    assert values.mean() == pytest.approx(0, abs=1e-3) and values.std() == pytest.approx(1, rel=1e-3)


def test_groups_of_one_change_nothing(pipe):
    images = smooth_images(12, seed=4)
    alone = pipe.calibrate(images).calibration_scores.clone()
    names = [f"{i:02d}" for i in range(12)]
    calibration = pipe.calibrate(images, groups=names)
    np.testing.assert_array_equal(calibration.calibration_scores, alone)
    assert calibration.single_scores_of() is None and "single_scores" not in calibration.state_dict()


def test_scores_of_single_images_are_saved_with_the_model_and_go_with_the_groups(pipe, tmp_path):
    images = smooth_images(24, seed=4)
    alone = pipe.calibrate(images)
    digest = pipe.digest
    single = pipe.calibrate(images, groups=[f"part {i % 8}" for i in range(24)]).single_scores_of()
    assert (
        single.shape == (7,)
        and (np.diff(single) >= 0).all()
        and set(single) <= set(pipe(images, false_alarm_rate=0.5).image_scores)
    )
    pipe.save_pretrained(tmp_path / "model")
    loaded = DiffADPipeline.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.calibration.single_scores_of(), single)
    assert loaded.digest == pipe.digest != digest
    pipe.calibrate(images)
    assert pipe.calibration.single_scores_of() is None and pipe.digest == digest and alone.single_scores_of() is None


def test_an_image_of_each_group_is_drawn_alike_and_whatever_the_others_are():
    groups = [np.array([3, 5, 8]), np.array([1]), np.array([0, 2])]
    counts = np.zeros(9)
    for seed in range(600):
        drawn = drawn_images(groups, seed)
        assert [image in group for image, group in zip(drawn, groups, strict=True)] == [True] * 3
        counts[drawn] += 1
    np.testing.assert_allclose(counts[[3, 5, 8, 1, 0, 2]] / 600, [1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2], atol=0.08)
    np.testing.assert_array_equal(drawn_images(groups, 7), drawn_images(groups, 7))
    assert drawn_images(groups[1:2], 0) is None


def test_false_alarms_on_new_groups_keep_the_rate():
    """Photographs of a part are alike: counted one by one, a threshold for 10 % would be passed far more often."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(400):
        parts = rng.normal(size=40)
        photographs = parts[:, None] + 0.1 * rng.normal(size=(40, 5))
        threshold = conformal_threshold(photographs[:19].max(axis=1), 0.1)
        alarms.append((photographs[19:, 0] > threshold).mean())
    assert np.mean(alarms) <= 0.1 + 2 * np.std(alarms) / 20


def test_too_few_groups_or_names_are_refused(pipe):
    with pytest.raises(ValueError, match="at least 2 groups of good images, got 1"):
        pipe.calibrate(smooth_images(5, seed=4), groups=["a"] * 5)
    with pytest.raises(ValueError, match="4 groups for 5 images"):
        pipe.calibrate(smooth_images(5, seed=4), groups=["a"] * 4)
