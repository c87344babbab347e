"""Maps of any quantity: sizes against Pillow, smoothing against scipy."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from diffad.imaging.array_maps import normal_level
from diffad.imaging.maps import enlarge_and_smooth_map, resize_map, smooth_map
from PIL import Image


def random_arrays(*shape: int, count: int = 1, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, size=(count, *shape))))


@pytest.mark.parametrize("size", [(12, 9), (64, 80), (7, 40)])
def test_resize_matches_pillow(size):
    maps = torch.stack(random_arrays(24, 20, count=2)).float()
    expected = [np.asarray(Image.fromarray(m.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)) for m in maps]
    np.testing.assert_allclose(resize_map(maps, size).numpy(), expected, atol=2e-6)


def test_resize_to_the_same_size_changes_nothing():
    score_map = torch.stack(random_arrays(6, 5))
    assert torch.equal(resize_map(score_map, (6, 5)), score_map)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 4.0])
def test_smoothing_matches_scipy(sigma):
    maps = torch.stack(random_arrays(20, 31, count=2)) * 100
    expected = [scipy.ndimage.gaussian_filter(m, sigma, mode="mirror", truncate=3.0) for m in maps.numpy()]
    np.testing.assert_allclose(smooth_map(maps, sigma).numpy(), expected, rtol=1e-6, atol=1e-9)


def test_smoothing_of_a_small_map_cuts_the_kernel_at_its_shorter_side():
    maps = torch.stack(random_arrays(5, 9, count=2))
    expected = [scipy.ndimage.gaussian_filter(m, 4.0, mode="mirror", radius=4) for m in maps.numpy()]
    np.testing.assert_allclose(smooth_map(maps, 4.0).numpy(), expected, rtol=1e-6)


def test_smoothing_keeps_a_constant_and_spreads_a_peak_evenly():
    constant = torch.full((1, 16, 16), -3.0)
    torch.testing.assert_close(smooth_map(constant, 4.0), constant)
    peak = torch.zeros(1, 41, 41)
    peak[0, 20, 20] = 1
    smooth = smooth_map(peak, 2.0)[0]
    assert smooth.sum().item() == pytest.approx(1, rel=1e-5)
    assert smooth[20, 22].item() == pytest.approx(smooth[22, 20].item(), rel=1e-6)
    assert (smooth[20, 22] / smooth[20, 20]).item() == pytest.approx(math.exp(-0.5), rel=1e-5)


@pytest.mark.parametrize("sigma", [0, 1.5, 4])
@pytest.mark.parametrize(("grid", "size"), [((32, 32), (256, 256)), ((4, 6), (32, 48)), ((5, 3), (17, 60)), ((8, 8), (8, 8))])
def test_enlarging_and_smoothing_in_one_is_one_after_the_other(grid, size, sigma):
    values = torch.rand(2, *grid, generator=torch.Generator().manual_seed(0)) * 30
    expected = smooth_map(resize_map(values, size), sigma)
    torch.testing.assert_close(enlarge_and_smooth_map(values, size, sigma), expected, rtol=2e-6, atol=2e-5)


def test_zero_sigma_changes_nothing():
    score_map = torch.stack(random_arrays(6, 5))
    assert torch.equal(smooth_map(score_map, 0), score_map)


def test_smoothing_inside_autocast_is_that_without():
    score_map = torch.stack(random_arrays(16, 16)).float()
    expected = smooth_map(score_map, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(smooth_map(score_map, 2.0), expected)


@pytest.mark.parametrize(("threshold", "level"), [(3.0, 0.0), (0.0, -1.0), (-2.5, -3.5)])
def test_normal_level_is_0_or_one_below_a_threshold_that_is_not_above_it(threshold, level):
    assert normal_level(threshold) == level
