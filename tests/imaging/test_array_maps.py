"""Maps without torch: the same values as the tensors' formulas."""

import numpy as np
import pytest
import torch
from diffad.imaging.array_maps import region_at, resize_array, smooth_array
from diffad.imaging.maps import resize_map, smooth_map


@pytest.mark.parametrize("size", [(64, 64), (48, 160), (20, 31), (7, 200), (33, 9)])
def test_arrays_are_resized_as_tensors_are(size):
    values = np.random.default_rng(0).normal(3, 5, size=(32, 48)).astype(np.float32)
    expected = resize_map(torch.from_numpy(values)[None], size)[0].numpy()
    np.testing.assert_allclose(
        resize_array(values, size), expected, atol=2e-4
    )  # of a range of 30: positions are in float32 there
    assert resize_array(values.astype(np.float64), (32, 48)).dtype == np.float32


@pytest.mark.parametrize(("size", "sigma"), [((40, 56), 4.0), ((5, 9), 4.0), ((40, 40), 0.7), ((6, 6), 0)])
def test_arrays_are_smoothed_as_tensors_are(size, sigma):
    values = np.random.default_rng(1).normal(size=size).astype(np.float32)
    expected = smooth_map(torch.from_numpy(values)[None], sigma)[0].numpy()
    np.testing.assert_allclose(smooth_array(values, sigma), expected, atol=1e-6)


def test_a_region_is_everywhere_or_what_of_it_is_left_at_the_maps_size():
    assert region_at(None, (3, 5)).all() and region_at(None, (3, 5)).shape == (3, 5)
    region = np.zeros((8, 8), dtype=bool)
    region[:, 4:] = True
    assert region_at(region, (4, 4)).tolist() == [[False, False, True, True]] * 4
    one = np.zeros((64, 64), dtype=bool)
    one[3, 3] = True
    with pytest.raises(ValueError, match="no pixel in a map of 4x4"):
        region_at(one, (4, 4))
