"""Maps `(height, width)` as arrays, for what runs without torch: the same formulas as in `maps`, and what both share."""

from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral

import numpy as np
from PIL import Image
from scipy.ndimage import correlate1d


def is_size(value: object) -> bool:
    """Whether it is `(height, width)` in whole pixels."""
    sides = list(value) if isinstance(value, Sequence) else []
    return len(sides) == 2 and all(isinstance(side, Integral) and side >= 1 for side in sides)


def normal_level(threshold: float) -> float:
    """A level that stands for normal pixels, below the threshold: where scales that reach up to the threshold begin.

    That is 0, the mean of standardised normal pixels; if the threshold is not above it, because the good images behind it
    score lower than those of the statistics, one standard deviation below the threshold.
    """
    return 0.0 if threshold > 0 else threshold - 1.0


def resize_array(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings a map `(h, w)` to `size` as float32: bilinear, with antialiasing where it shrinks."""
    if values.shape == tuple(size):
        return values.astype(np.float32, copy=False)
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def smooth_array(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing of a map `(H, W)`, `sigma` in pixels of the map; 0 leaves it unchanged."""
    if sigma == 0:
        return values
    kernel = gaussian_kernel(values.shape, sigma)
    return correlate1d(correlate1d(values, kernel, axis=1, mode="mirror"), kernel, axis=0, mode="mirror")


@lru_cache(maxsize=32)
def upsampling_matrices(grid: tuple[int, int], size: tuple[int, int], sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """`(H, h)` and `(W, w)` in float64, not to be changed in place: a map enlarged and then smoothed is rows @ map @ columns.T.

    Args:
        grid, size: of the map before and after, `size` the larger.
        sigma: of the smoothing in pixels of the enlarged map; 0 leaves it as it is.
    """
    kernel = gaussian_kernel(size, sigma) if sigma else np.ones(1)
    rows, columns = (
        correlate1d(resize_array(np.eye(length), (target, length)).astype(np.float64), kernel, axis=0, mode="mirror")
        for length, target in zip(grid, size, strict=True)
    )
    return rows, columns


def gaussian_kernel(size: Sequence[int], sigma: float) -> np.ndarray:
    """Weights in float64 of a Gaussian that smooths maps of `size` with reflection at the border."""
    radius = kernel_radius(size, sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def kernel_radius(size: Sequence[int], sigma: float) -> int:
    """Reflection needs a border smaller than the map; 3 sigma hold all of the kernel that matters."""
    return min(round(3 * sigma), min(size) - 1)


def region_at(region: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """A region of interest, bool, at a map's size; None is everywhere.

    Raises:
        ValueError: if it has no pixel there.
    """
    if region is None:
        return np.ones(tuple(size), dtype=bool)
    inside = resize_array(region.astype(np.float32), size) >= 0.5
    if not inside.any():
        raise ValueError(f"the region of interest has no pixel in a map of {size[0]}x{size[1]}")
    return inside
