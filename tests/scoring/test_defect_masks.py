"""Masks of defects: regions that reach above the threshold, each down to its own edge, and no others."""

import time

import numpy as np
import pytest
import torch
from diffad import Calibration
from diffad.scoring.config import DEFAULT_EDGE
from diffad.scoring.defect_masks import defect_mask
from diffad_training.components import build_calibration
from diffad_training.config import parse_config
from fixed_maps import with_scores
from scipy.ndimage import gaussian_filter


def smooth_map(seed: int, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    values = gaussian_filter(np.random.default_rng(seed).normal(size=size), 1.5)
    return (values / values.std()).astype(np.float32)


def mask_by_flood(values: np.ndarray, threshold: float, edge: float, normal: float) -> np.ndarray:
    """By definition: each region is flooded pixel by pixel from a pixel above the threshold, then cut by its own peak."""
    values, mask = values.astype(np.float64), np.zeros(values.shape, dtype=bool)
    flooded: set[tuple[int, int]] = set()
    for seed in np.argwhere(values > threshold):
        if tuple(seed.tolist()) in flooded:
            continue
        region, to_visit = set(), [tuple(seed.tolist())]
        while to_visit:
            y, x = to_visit.pop()
            is_inside = 0 <= y < values.shape[0] and 0 <= x < values.shape[1]
            if (y, x) in region or not is_inside or (values[y, x] - normal) / (threshold - normal) < edge:
                continue
            region.add((y, x))
            to_visit += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        flooded |= region
        peak = max(values[place] for place in region)
        for place in region:
            mask[place] |= (values[place] - normal) / (peak - normal) >= edge
    return mask


@pytest.mark.parametrize("seed", range(10))
def test_mask_is_that_of_a_flood_from_every_pixel_above_the_threshold(seed):
    values, rng = smooth_map(seed), np.random.default_rng(seed)
    threshold, normal, edge = rng.uniform(1, 2), rng.uniform(-1, 0.5), rng.uniform(0.2, 0.95)
    expected = mask_by_flood(values, threshold, edge, normal)
    assert expected.any() and not expected.all()
    np.testing.assert_array_equal(defect_mask(values, threshold, edge, normal), expected)


def test_a_weak_defect_is_covered_and_a_strong_one_is_not_bloated():
    """Squares of 21 pixels, blurred by 4: their edge lies at half their height, and the mask ends a bit inside of it."""
    truth = np.zeros((80, 160), dtype=bool)
    truth[30:51, 30:51] = truth[30:51, 110:131] = True
    heights = np.where(np.arange(160) < 80, 5.4, 50.0)
    values = gaussian_filter(truth * heights, 4)
    plain, mask = defect_mask(values, 5.0, None), defect_mask(values, 5.0, 0.5)
    np.testing.assert_array_equal(plain, values > 5)
    weak, strong = np.s_[:, :80], np.s_[:, 80:]
    assert plain[weak].sum() < 0.5 * truth[weak].sum() and plain[strong].sum() > 1.5 * truth[strong].sum()
    for part in (weak, strong):
        assert np.count_nonzero(mask[part] ^ truth[part]) < 0.15 * truth[part].sum()


@pytest.mark.parametrize("edge", [None, 0.01, 0.5, DEFAULT_EDGE, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_mask_is_empty_exactly_if_no_pixel_is_above_the_threshold(edge, seed):
    values = smooth_map(seed)
    peak = values.max()
    for threshold in (peak, np.nextafter(peak, np.float32(np.inf)), 2 * peak):
        assert not defect_mask(values, float(threshold), edge).any()
    for threshold in (np.nextafter(peak, np.float32(0)), 0.9 * peak, 0.1 * peak):
        mask = defect_mask(values, float(threshold), edge)
        assert mask.dtype == bool and mask.shape == values.shape
        assert mask[np.unravel_index(values.argmax(), values.shape)]


@pytest.mark.parametrize(("factor", "shift"), [(4.0, 0.0), (0.25, 0.0), (1.0, 16.0), (2.0, -8.0)])
def test_mask_does_not_depend_on_the_scale_of_the_map(factor, shift):
    values = np.round(smooth_map(3) * 64) / 64  # so that nothing is rounded
    mask = defect_mask(values, 1.5, 0.625, 0.25)
    assert mask.any()
    np.testing.assert_array_equal(
        defect_mask(factor * values + shift, factor * 1.5 + shift, 0.625, factor * 0.25 + shift), mask
    )


def test_pixels_that_meet_at_a_corner_are_one_region():
    values = np.zeros((6, 6))
    values[1, 1], values[2, 2], values[4, 4] = 3, 1.6, 1.9
    expected = np.zeros((6, 6), dtype=bool)
    expected[1, 1] = expected[2, 2] = True
    np.testing.assert_array_equal(defect_mask(values, 2.0, 0.5), expected)


def test_many_regions_of_a_megapixel_take_no_longer_than_few():
    values = np.zeros((1024, 1024), dtype=np.float32)
    values[::4, ::4] = 10
    best = np.inf
    for _ in range(3):
        started = time.perf_counter()
        assert defect_mask(values, 5.0, DEFAULT_EDGE).sum() == 256**2
        best = min(best, time.perf_counter() - started)
    assert best < 0.5  # 0.05 s; a loop over regions takes minutes


# In the calibration


def test_calibration_marks_regions_down_to_its_edge_inside_the_region_of_interest():
    calibration = with_scores(np.arange(1.0, 20.0))
    calibration.register_to_config(mask_edge=0.5)
    roi = torch.zeros(16, 16, dtype=torch.bool)
    roi[:, :8] = True
    calibration.set_roi(roi)
    threshold = calibration.pixel_threshold(0.1)
    bump = gaussian_filter(np.pad([[1.0]], ((15, 16), (13, 18))), 3).astype(np.float32)  # its peak at column 13 of 32
    bump *= 2 * threshold / bump.max()
    outside = np.roll(bump, 10, axis=1)
    verdicts = calibration.judge(np.zeros(2), [bump, outside], np.full(2, 0.1), None, np.zeros(2, dtype=bool))
    expected = (bump >= threshold) & (np.arange(32) < 16)
    assert 0 < expected.sum() < (bump >= threshold).sum() and np.array_equal(verdicts.masks[0], expected)
    assert (outside > threshold).any() and not verdicts.masks[1].any()


def test_false_alarms_of_masks_are_those_of_the_threshold():
    calibration = with_scores(np.random.default_rng(0).normal(3, 1, size=39))
    calibration.register_to_config(mask_edge=DEFAULT_EDGE)
    maps = [1.3 * smooth_map(seed) for seed in range(50)]
    rates = np.full(50, 0.05)
    verdicts = calibration.judge(np.zeros(50), maps, rates, None, np.zeros(50, dtype=bool))
    above = [(m > calibration.pixel_threshold(0.05)).any() for m in maps]
    assert [mask.any() for mask in verdicts.masks] == above and 0 < sum(above) < 50


def test_a_threshold_below_the_normal_level_of_0_has_a_mask_like_one_above():
    calibration = with_scores(np.arange(-30.0, -11.0))
    calibration.register_to_config(mask_edge=0.5)
    threshold = calibration.pixel_threshold(0.1)
    assert threshold < 0
    values = np.array([[threshold - 3, threshold - 0.2, threshold + 1, threshold - 0.6, threshold + 0.1]])
    assert calibration.mask(values, threshold, is_defective=True).tolist() == [[False, False, True, False, True]]


def test_trained_models_have_an_edge_and_models_saved_without_one_have_none(tmp_path):
    assert build_calibration(parse_config(["--data", "x"])).config.mask_edge == DEFAULT_EDGE
    settings = {name: value for name, value in Calibration(top_k=3).config.items() if name != "mask_edge"}
    assert Calibration.from_config(settings).config.mask_edge is None
    calibration = with_scores(np.arange(1.0, 20.0))
    calibration.register_to_config(mask_edge=0.6)
    calibration.save_pretrained(tmp_path)
    assert Calibration.from_pretrained(tmp_path).config.mask_edge == 0.6
    assert calibration.unfitted().config.mask_edge == calibration.unfitted(top_k=2).config.mask_edge == 0.6
    assert calibration.unfitted(mask_edge=None).config.mask_edge is None


@pytest.mark.parametrize("edge", [0, 1, -0.5, 1.5, float("nan")])
def test_an_edge_outside_0_to_1_is_refused(edge):
    with pytest.raises(ValueError, match="mask_edge must lie between 0 and 1"):
        Calibration(mask_edge=edge)
