"""Distances to the nearest other images, against one vector after the other."""

from itertools import product

import numpy as np
import pytest
import torch
from diffad.models.left_out_neighbors import left_out_neighbor_distances

GRID, GROUPS = (3, 4), [0, 1, 1, 2, 3]


def test_distances_are_to_the_nearest_vectors_of_other_groups_around():
    vectors = torch.randn(5, 12, 6, generator=torch.Generator().manual_seed(0)).half()
    placed = vectors.double().numpy().reshape(5, *GRID, 6)
    expected = np.full((5, *GRID), np.inf)
    for i, j in product(range(5), repeat=2):
        for (y, x), (v, u) in product(np.ndindex(GRID), repeat=2):
            if GROUPS[i] != GROUPS[j] and abs(y - v) <= 1 and abs(x - u) <= 1:
                expected[i, y, x] = min(expected[i, y, x], np.sum((placed[i, y, x] - placed[j, v, u]) ** 2))
    found = left_out_neighbor_distances(vectors, GRID, GROUPS).numpy()
    assert found.reshape(expected.shape) == pytest.approx(expected, rel=1e-4)


def test_an_image_and_its_copy_moved_by_a_position_differ_at_the_border_only():
    image = torch.randn(1, 5, 5, 8, generator=torch.Generator().manual_seed(1))
    both = torch.cat([image, image.roll(1, dims=2)]).flatten(1, 2)
    found = left_out_neighbor_distances(both, (5, 5), [0, 1])[0].view(5, 5)
    assert found[:, :4].max() < 1e-4 < 1 < found[:, 4].min()


def test_one_group_has_no_neighbors():
    with pytest.raises(ValueError, match="all images are of one group"):
        left_out_neighbor_distances(torch.zeros(3, 12, 2), GRID, [1, 1, 1])
