"""How far each image lies, position by position, from what other images show at the same place.

Where parts lie in any direction, a Gaussian of a position holds nearly everything. But among some hundred images some lie
alike, and the nearest of them says what is usual (nearest images are Cohen's and Hoshen's, 2020; here each position has its
own).
"""

from collections.abc import Sequence
from itertools import product

import torch


def left_out_neighbor_distances(vectors: torch.Tensor, grid: tuple[int, int], groups: Sequence[int]) -> torch.Tensor:
    """Squared distance of every image, at every position, to the nearest vector of other groups there or one position aside.

    Args:
        vectors: `(n, P, D)` of any float type, positions row by row; computed in float32, one position at a time.
        grid: `(height, width)`, whose product is P.
        groups: `(n,)` group of each image, whose members are no neighbours of each other.

    Returns:
        `(n, P)` float32, at least 0.

    Raises:
        ValueError: if all images are of one group.
    """
    group = torch.as_tensor(groups)
    if len(group.unique()) < 2:
        raise ValueError("all images are of one group: there are no others that could be neighbours")
    is_own = group[:, None] == group
    placed = vectors.unflatten(1, grid)  # (n, h, w, D)
    distances = torch.empty(vectors.shape[:2])
    for place, (y, x) in enumerate(product(*map(range, grid))):
        here = placed[:, y, x].float()  # (n, D)
        around = placed[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].flatten(1, 2).float()  # (n, 9 or fewer, D)
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a b, where |a|^2 is the same for all b
        relative = torch.addmm(around.square().sum(dim=2).flatten(), here, around.flatten(0, 1).T, alpha=-2)
        nearest = relative.unflatten(1, around.shape[:2]).amin(dim=2)  # (n, n)
        distances[:, place] = nearest.masked_fill_(is_own, torch.inf).amin(dim=1) + here.square().sum(dim=1)
    return distances.clamp_min(0)  # below 0 only by rounding
