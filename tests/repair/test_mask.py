"""Which pixels are repaired, and what is put there first."""

import time

import numpy as np
import pytest
import torch
from diffad.repair.mask import defect_region, differs_from_prediction, soft_edge
from scipy.ndimage import binary_fill_holes, gaussian_filter, label


def test_region_grows_from_pixels_above_the_threshold_only():
    anomaly_map = torch.zeros(1, 20, 20)
    anomaly_map[0, 3:8, 3:8] = 6  # reaches above the threshold in one pixel
    anomaly_map[0, 5, 5] = 11
    anomaly_map[0, 14:18, 14:18] = 6  # nowhere above it
    region = defect_region(anomaly_map, torch.tensor([10.0]), level=0.5, peak_share=0.5, margin=0)
    expected = torch.zeros(1, 1, 20, 20)
    expected[..., 3:8, 3:8] = 1
    assert torch.equal(region, expected)
    assert defect_region(anomaly_map, torch.tensor([10.0]), 0.5, 0.5, margin=2).sum() > region.sum()


def test_region_ends_at_a_share_of_its_own_peak():
    y = torch.arange(40.0)
    bump = torch.exp(-((y - 20).square()[:, None] + (y - 20).square()) / (2 * 6**2))
    anomaly_map = (100 * bump)[None].expand(2, -1, -1)
    # The second map's threshold is never reached, and its level lies above the share of the peak.
    region = defect_region(anomaly_map, torch.tensor([5.0, 120.0]), level=0.7, peak_share=0.6, margin=0)
    assert torch.equal(region[0, 0] == 1, anomaly_map[0] >= 60)
    assert torch.equal(region[1, 0] == 1, anomaly_map[1] >= 70)


def regions_one_by_one(values: np.ndarray, threshold: float, level: float, peak_share: float) -> np.ndarray:
    """The regions `(H, W)` of a map by a loop over them, for thresholds above 0."""
    peak = min(threshold, values.max())
    labels, count = label(values >= level * peak, np.ones((3, 3)))
    region = np.zeros(values.shape, dtype=bool)
    for index in range(1, count + 1):
        inside = labels == index
        if values[inside].max() >= peak:
            region |= inside & (values >= peak_share * values[inside].max())
    return binary_fill_holes(region)


@pytest.mark.parametrize("seed", range(20))
def test_regions_of_random_maps_are_those_of_a_loop_over_them(seed):
    rng = np.random.default_rng(seed)
    maps = 10 * gaussian_filter(rng.normal(size=(3, 60, 70)), (0, 1.5, 1.5)).astype(np.float32)
    thresholds, level, peak_share = torch.tensor([1.0, 2.0, 9.0]), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.9)
    region = defect_region(torch.from_numpy(maps), thresholds, level, peak_share, margin=0)
    for found, values, threshold in zip(region[:, 0].numpy(), maps, thresholds.tolist(), strict=True):
        expected = regions_one_by_one(values, threshold, level, peak_share)
        assert expected.any()
        np.testing.assert_array_equal(found, expected)


def test_time_does_not_grow_with_regions_times_pixels():
    """17,000 regions on a megapixel; a loop that looks at the whole map for each of them takes several seconds."""
    anomaly_map = torch.zeros(1, 1024, 1024)
    anomaly_map[0, ::8, :1024:8] = 10
    anomaly_map[0, 4::32, ::8] = 10
    assert label(anomaly_map[0].numpy() > 5)[1] > 17_000
    started = time.process_time()
    region = defect_region(anomaly_map, torch.tensor([5.0]), level=0.7, peak_share=0.6, margin=1)
    assert time.process_time() - started < 0.5
    assert region.sum() > 17_000 * 3


def test_region_is_never_empty_and_has_no_holes():
    ring = torch.zeros(1, 20, 20)
    ring[0, 4:12, 4:12] = 3
    ring[0, 6:10, 6:10] = 0
    region = defect_region(ring, torch.tensor([10.0]), level=0.5, peak_share=0.5, margin=0)  # no pixel reaches the threshold
    assert region[0, 0, 4:12, 4:12].all() and region.sum() == 64


def test_pixels_that_meet_at_a_corner_are_one_region():
    diagonal = torch.zeros(1, 8, 8)
    diagonal[0, 2, 2], diagonal[0, 3, 3] = 11, 8  # the second pixel alone would not reach the threshold
    region = defect_region(diagonal, torch.tensor([10.0]), level=0.7, peak_share=0.6, margin=0)
    assert torch.equal(region[0, 0] == 1, diagonal[0] > 0)


@pytest.mark.parametrize("threshold", [5.0, 0.0, -3.0, -6.0])
def test_region_is_found_for_thresholds_of_any_sign(threshold):
    """A defect well above the threshold on a surface well below it, and a weaker rise that stays below it."""
    anomaly_map = torch.full((1, 20, 20), threshold - 5)
    anomaly_map[0, 3:8, 3:8] = threshold + 3  # its flank
    anomaly_map[0, 5, 5] = threshold + 4
    anomaly_map[0, 14:18, 14:18] = threshold - 0.2
    region = defect_region(anomaly_map, torch.tensor([threshold]), level=0.7, peak_share=0.6, margin=0)
    assert torch.equal(region[0, 0] == 1, anomaly_map[0] > threshold)
    below = defect_region(anomaly_map, torch.tensor([threshold + 9]), level=0.7, peak_share=0.6, margin=0)
    assert below[0, 0, 5, 5] == 1 and not (below > region).any()  # defective by its score alone: the maximum counts


def test_soft_edge_is_one_inside_and_fades():
    region = torch.zeros(1, 1, 32, 32)
    region[..., 10:20, 10:20] = 1
    opacity = soft_edge(region)
    assert (opacity[region == 1] == 1).all()
    assert 0 < opacity[0, 0, 15, 21] < 1 and opacity[0, 0, 15, 31] == 0


def test_differs_from_prediction_by_more_than_texture():
    images = torch.zeros(2, 3, 32, 32)
    denoised = torch.zeros_like(images)
    images[0, :, 10:14, 8:12] = 0.8
    images[1] = 0.15 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[1, :, 20, 20] = 0.9  # a single pixel
    marked = differs_from_prediction(images, denoised, 0.3)[:, 0].bool()
    assert marked[0, 10:14, 8:12].all() and not marked[0, :6].any() and not marked[0, :, 16:].any()
    assert marked[0].sum() <= 10 * 10  # four pixels and at most three on each side
    assert not marked[1].any()
