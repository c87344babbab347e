"""Bootstrap over images: counts give the exact metrics, weights are repetitions, intervals those of plain resampling."""

import numpy as np
import pytest
from diffad.evaluation.bootstrap import confidence_intervals
from diffad.evaluation.counts import ScoreCounts, count_images, count_pixels
from diffad.evaluation.metrics import detection_metrics, localization_metrics
from diffad.evaluation.sweep import sweep, sweep_metrics
from scipy.ndimage import gaussian_filter


def metrics_of(counts: ScoreCounts, weights: np.ndarray | None = None) -> dict[str, float]:
    return {name: value.item() for name, value in sweep_metrics(sweep(counts, weights)).items()}


@pytest.fixture(scope="module")
def maps_and_masks():
    """12 smooth maps, the last 8 with one to three raised regions, not all of them found."""
    rng = np.random.default_rng(0)
    maps = np.stack([gaussian_filter(rng.normal(size=(48, 64)), 2) for _ in range(12)]).astype(np.float32) * 7
    masks = np.zeros(maps.shape, dtype=bool)
    for i in range(4, 12):
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, 38, 2)
            masks[i, y : y + rng.integers(3, 10), x : x + rng.integers(3, 10)] = True
        maps[i][masks[i]] += rng.normal(2, 1)
    return maps, masks


def test_image_metrics_are_exact_with_ties():
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 12, 80).astype(float), rng.random(80) < 0.4
    counted = metrics_of(count_images(scores, labels))
    assert {f"image_{name}": value for name, value in counted.items()} == pytest.approx(detection_metrics(scores, labels))


def test_pixel_metrics_are_within_a_thousandth_of_the_exact_ones(maps_and_masks):
    counted = metrics_of(count_pixels(*maps_and_masks))
    named = {name if name.startswith("aupro") else f"pixel_{name}": value for name, value in counted.items()}
    assert named == pytest.approx(localization_metrics(*maps_and_masks), abs=1e-3)


def test_every_pixel_and_region_is_counted_once(maps_and_masks):
    maps, masks = maps_and_masks
    counts = count_pixels(maps, masks)
    np.testing.assert_array_equal(counts.defective.sum(axis=1), masks.sum(axis=(1, 2)))
    np.testing.assert_array_equal(counts.normal.sum(axis=1), (~masks).sum(axis=(1, 2)))
    regions = counts.overlap.sum(axis=1)
    np.testing.assert_allclose(regions, regions.round(), atol=1e-5)
    assert (regions[:4] == 0).all() and (regions[4:] >= 1).all()


def test_a_weight_is_a_repetition(maps_and_masks):
    maps, masks = maps_and_masks
    weights = np.array([1, 0, 2, 1, 3, 0, 1, 1, 0, 2, 1, 1])
    weighted = metrics_of(count_pixels(maps, masks), weights[None])
    repeated = localization_metrics(maps.repeat(weights, axis=0), masks.repeat(weights, axis=0))
    for name in ("pixel_auroc", "pixel_ap", "aupro_30"):
        assert weighted[name.removeprefix("pixel_")] == pytest.approx(repeated[name], abs=1e-3)


def test_intervals_are_those_of_plain_stratified_resampling():
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 3 > 0
    scores = rng.normal(size=60) + labels
    low, high = confidence_intervals(count_images(scores, labels), labels, resamples=4000)["auroc"]
    good, defective = np.flatnonzero(~labels), np.flatnonzero(labels)
    good, defective = (scores[rng.choice(kind, (4000, 1, len(kind)))] for kind in (good, defective))
    plain = (defective.swapaxes(1, 2) > good).mean(axis=(1, 2))  # AUROC: share of pairs in the right order
    assert (low, high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.015)


def test_intervals_are_seeded_and_hold_the_value(maps_and_masks):
    maps, masks = maps_and_masks
    counts, labels = count_pixels(maps, masks), masks.any(axis=(1, 2))
    intervals = confidence_intervals(counts, labels, resamples=300)
    assert intervals == confidence_intervals(counts, labels, resamples=300)
    assert intervals != confidence_intervals(counts, labels, resamples=300, seed=1)
    for name, value in metrics_of(counts).items():
        assert intervals[name][0] < value < intervals[name][1]


def test_defective_images_without_defective_pixels_leave_the_intervals_finite(maps_and_masks):
    maps, masks = maps_and_masks
    masks = masks & (np.arange(12) == 11)[:, None, None]
    intervals = confidence_intervals(count_pixels(maps, masks), np.arange(12) >= 10, resamples=200)
    assert all(0 <= low <= high <= 1 for low, high in intervals.values())
