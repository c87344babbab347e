"""Outliers among good images: ranked first, also where they hide each other, and seldom found where there are none."""

import numpy as np
import pytest
import torch
from diffad.scoring.outliers import FALSE_RATE, ScaleVectors, find_outliers, highest, outlier_limit, robust_scores
from scipy.stats import norm

N, POSITIONS, DIMS = 60, 16, 12


def features(seed: int, defects: int = 0, strength: float = 8.0, places: int = 6) -> torch.Tensor:
    """`(N, P, D)`; the first images have a defect of the same kind, at one of some positions."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(N, POSITIONS, DIMS, generator=generator)
    vectors[range(defects), torch.arange(defects) % places, :3] += strength
    return vectors


def scales(vectors: torch.Tensor) -> dict[str, ScaleVectors]:
    return {"fine": ScaleVectors(vectors, 0.1)}


def test_defects_are_found_though_they_are_a_tenth_of_the_images():
    outliers = find_outliers(scales(features(0, defects=6)))
    assert set(outliers.order[:6]) == set(range(6))
    assert outliers.is_outlier[:6].all() and outliers.is_outlier[6:].sum() <= 1


def test_refits_without_outliers_show_what_they_hid():
    dirty = features(1, defects=6, places=2)
    once, refitted = (find_outliers(scales(dirty), rounds=rounds).scores for rounds in (1, 5))
    assert refitted[:12].mean() > once[:12].mean() + 1


def test_among_good_images_outliers_are_rare():
    found = [find_outliers(scales(features(seed)), rounds=1).is_outlier for seed in range(20)]
    assert np.mean(found) <= 0.01  # 0.0008 expected, were the numbers exactly normal


def test_copies_of_a_defect_are_left_out_together():
    vectors = features(2, defects=1, strength=4.0)
    vectors[1:4] = vectors[0]
    alone = find_outliers(scales(vectors), rounds=1).scores[0]
    groups = [0, 0, 0, 0, *range(1, N - 3)]
    assert find_outliers(scales(vectors), groups, rounds=1).scores[0] > alone + 1


def test_scales_count_equally():
    noise = features(3)
    both = find_outliers({"fine": ScaleVectors(features(4, defects=3), 0.1), "coarse": ScaleVectors(noise, 0.1)})
    assert set(both.order[:3]) == {0, 1, 2} and both.distances.keys() == {"fine", "coarse"}


def test_what_only_neighbors_tell_is_unlike_the_others_too():
    usual = np.random.default_rng(5).uniform(1, 2, (N, POSITIONS))
    usual[3, 7] = 20
    outliers = find_outliers(scales(features(5, defects=2)), neighbors=usual)
    assert set(outliers.order[:3]) == {0, 1, 3} and outliers.distances["neighbors"] is usual


def test_copies_leave_finite_numbers():
    """More than half of the images are at no distance to others."""
    distances = np.zeros((N, POSITIONS))
    distances[:20] = 1
    assert np.isfinite(find_outliers(scales(features(6)), neighbors=distances).scores).all()


def test_the_limit_is_bonferronis():
    assert norm.sf(outlier_limit(200)) == pytest.approx(FALSE_RATE / 200)


def test_scores_are_standardised_by_those_that_count():
    values = np.append(np.random.default_rng(0).normal(3, 2, 20_000), 1e6)
    scores = robust_scores(values, np.arange(20_001) < 20_000)
    assert scores[:-1].std() == pytest.approx(1, abs=0.03) and scores[:-1].mean() == pytest.approx(0, abs=0.03)


def test_an_images_number_is_of_its_highest_positions():
    distances = np.tile(np.arange(1.0, 1001.0), (2, 1))
    assert highest(distances) == pytest.approx([np.log(998.0)] * 2)  # mean of 996 to 1000


def test_three_images_tell_nothing():
    with pytest.raises(ValueError, match="at least 4"):
        find_outliers(scales(features(0)[:3]))
