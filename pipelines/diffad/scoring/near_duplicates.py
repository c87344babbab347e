"""Which images are nearly the same: saved twice, re-encoded, resized, or taken one after the other.

How near two different images of a product usually are, the images say themselves: logarithms of the distances to the nearest
other image, standardised by median and median absolute deviation, are taken to be normal. What is nearer than such distances
ever are is nearly the same. Where more than half of the images have such a copy, that is taken for usual, and only exact copies
are found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm

from .outliers import FALSE_RATE, NORMAL_MAD

SIDE = 8  # positions per side of what images are compared by
LEAST_SPREAD = 1e-4  # of a feature; one that does not vary says nothing


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of images that are nearly the same.

    Args:
        groups: `(n,)` index of each image's group; an image without a near duplicate is a group of its own.
        nearest: `(n,)` index of the nearest other image.
        distances: `(n,)` to it, as a multiple of the usual one.
        threshold: multiple below which two images are nearly the same.
    """

    groups: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    threshold: float


def descriptors(features: torch.Tensor) -> torch.Tensor:
    """What images are compared by, `(n, D s s)`, of features `(n, D, h, w)`; s is 8, or the grid's side if smaller."""
    size = [min(SIDE, side) for side in features.shape[-2:]]
    return F.adaptive_avg_pool2d(features.float(), size).flatten(1)


def find_near_duplicates(described: torch.Tensor, digests: Sequence[str]) -> NearDuplicates:
    """Groups images by nearness.

    Args:
        described: `(n, F)` of [`descriptors`].
        digests: of the images' pixels: those with the same one are the same.

    Raises:
        ValueError: with fewer than three images.
    """
    n = len(described)
    if n < 3:
        raise ValueError(f"{n} image(s): at least 3 are needed to tell how near different ones are")
    spread = described.std(dim=0)
    varying = spread > LEAST_SPREAD
    standardized = (described - described.mean(dim=0))[:, varying] / spread[varying]
    distances = torch.cdist(standardized, standardized).numpy().astype(np.float64)
    same = np.array(digests)[:, None] == np.array(digests)[None]
    different = np.where(same, np.inf, distances)  # the diagonal, too
    nearest_different = different.min(axis=1)
    logarithms = np.log(nearest_different[np.isfinite(nearest_different) & (nearest_different > 0)])
    usual = np.median(logarithms) if len(logarithms) else 0.0
    deviation = NORMAL_MAD * np.median(np.abs(logarithms - usual)) if len(logarithms) else 0.0
    threshold = float(np.exp(norm.ppf(FALSE_RATE / n) * deviation))
    near = same | (distances < threshold * np.exp(usual))
    _, groups = connected_components(coo_array(near), directed=False)
    np.fill_diagonal(distances, np.inf)
    distances[same & ~np.eye(n, dtype=bool)] = 0
    nearest = distances.argmin(axis=1)
    return NearDuplicates(groups, nearest, distances.min(axis=1) / np.exp(usual), threshold)
