"""Maps `(batch, height, width)` of any quantity: sizes, smoothing, and the level at which scales begin."""

from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from ..system.autocast import without_autocast


def is_size(value: object) -> bool:
    """Whether it is `(height, width)` in whole pixels."""
    sides = list(value) if isinstance(value, Sequence) else []
    return len(sides) == 2 and all(isinstance(side, Integral) and side >= 1 for side in sides)


def resize_map(score_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Brings a `(B, h, w)` map to `size`: bilinear, with antialiasing where it shrinks."""
    if score_map.shape[-2:] == tuple(size):
        return score_map
    return F.interpolate(score_map[:, None], size=size, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def smooth_map(score_map: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing of a `(B, H, W)` map, `sigma` in pixels of the map; 0 leaves it unchanged."""
    if sigma == 0:
        return score_map
    radius = _radius(score_map, sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).to(score_map)
    with without_autocast(score_map.device.type):
        padded = F.pad(score_map[:, None], (radius, radius, radius, radius), mode="reflect")
        return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def smooth_map_by_square_kernel(score_map: torch.Tensor, sigma: float) -> torch.Tensor:
    """The same in several times the time and with another rounding, that of the scores of models that diffad 0.1 trained."""
    if sigma == 0:
        return score_map
    size = 2 * _radius(score_map, sigma) + 1
    with without_autocast(score_map.device.type):
        return gaussian_blur(score_map[:, None], kernel_size=size, sigma=sigma)[:, 0]


def _radius(score_map: torch.Tensor, sigma: float) -> int:
    # Reflection needs a border smaller than the map; 3 sigma hold all of the kernel that matters.
    return min(round(3 * sigma), min(score_map.shape[-2:]) - 1)


def normal_level(threshold: float) -> float:
    """A level that stands for normal pixels, below the threshold: where scales that reach up to the threshold begin.

    That is 0, the mean of standardised normal pixels; if the threshold is not above it, because the normal images behind it
    score lower than those of the statistics, one standard deviation below the threshold.
    """
    return 0.0 if threshold > 0 else threshold - 1.0
