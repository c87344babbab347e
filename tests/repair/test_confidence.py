"""How much of an image marks enclose, and what is said of repairs."""

import numpy as np
import pytest
import torch
from diffad.repair.confidence import enclosed_share, is_told
from skimage.morphology import convex_hull_image

SIDE = 64


def random_marks(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    marked = np.zeros((SIDE, SIDE), dtype=bool)
    top, left, height, width = *rng.integers(0, 40, 2), *rng.integers(8, 24, 2)
    marked[top : top + height, left : left + width] = rng.random((height, width)) < 0.3
    return marked


@pytest.mark.parametrize("seed", range(8))
def test_marks_that_lie_near_each_other_enclose_their_hull(seed):
    marked = random_marks(seed)
    expected = convex_hull_image(marked, offset_coordinates=False).mean()  # of the pixels' middles
    assert expected <= enclosed_share(marked) <= convex_hull_image(marked).mean() + 0.02


def test_exact_shares():
    marked = np.zeros((SIDE, SIDE), dtype=bool)
    assert enclosed_share(marked) == 0
    marked[10, 20] = True
    assert enclosed_share(marked) == pytest.approx(1 / SIDE**2)  # of a pixel
    marked[10:30, 20] = marked[10:30, 27] = marked[10, 20:28] = True  # three sides of 20 by 8 pixels
    assert enclosed_share(marked) == pytest.approx(160 / SIDE**2)
    marked[60, 60] = True  # far from them
    assert enclosed_share(marked) == pytest.approx(161 / SIDE**2)
    assert enclosed_share(np.ones((SIDE, SIDE), dtype=bool)) == 1


def test_edges_of_a_large_place_are_not_told_and_small_places_are():
    maps = torch.zeros(4, SIDE, SIDE)
    maps[0, 8:56, 8] = maps[0, 8:56, 16] = 1.5  # edges near each other, of 10 % of the image
    for column in range(8, 56, 8):
        maps[1, 8:56, column] = 1.5  # of half of it
    maps[2, 4:8, 4:8] = maps[2, 56:60, 56:60] = 1.5  # two places, far apart
    maps[3, 30, 30] = 0.9  # nothing above the threshold
    replaced = torch.zeros(4, 1, SIDE, SIDE)
    threshold = torch.ones(4)
    assert is_told(maps, threshold, replaced, 0.15).tolist() == [True, False, True, True]
    replaced[2, 0, :32] = 1
    assert is_told(maps, threshold, replaced, 0.15).tolist() == [True, False, False, True]
    assert is_told(maps, threshold, replaced, 0.9).all()
