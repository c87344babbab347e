"""Maps `(batch, height, width)` of any quantity: sizes and smoothing."""

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from ..system.autocast import without_autocast
from .array_maps import gaussian_kernel, kernel_radius, upsampling_matrices


def resize_map(score_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Brings a `(B, h, w)` map to `size`: bilinear, with antialiasing where it shrinks."""
    if score_map.shape[-2:] == tuple(size):
        return score_map
    return F.interpolate(score_map[:, None], size=size, mode="bilinear", align_corners=False, antialias=True)[:, 0]


def smooth_map(score_map: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing of a `(B, H, W)` map, `sigma` in pixels of the map; 0 leaves it unchanged."""
    if sigma == 0:
        return score_map
    radius = kernel_radius(score_map.shape[-2:], sigma)
    kernel = torch.from_numpy(gaussian_kernel(score_map.shape[-2:], sigma)).to(score_map)
    with without_autocast(score_map.device.type):
        padded = F.pad(score_map[:, None], (radius, radius, radius, radius), mode="reflect")
        return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def enlarge_and_smooth_map(score_map: torch.Tensor, size: tuple[int, int], sigma: float) -> torch.Tensor:
    """[`smooth_map`] of [`resize_map`] for a `(B, h, w)` map that is not larger than `size`, in a fraction of the time.

    Both are linear in rows and columns, so that two products with small matrices take the place of convolutions of large maps.
    """
    matrices = upsampling_matrices(tuple(score_map.shape[-2:]), tuple(size), sigma)
    rows, columns = (torch.from_numpy(matrix).to(score_map) for matrix in matrices)
    with without_autocast(score_map.device.type):
        return rows @ score_map @ columns.T


def smooth_map_by_square_kernel(score_map: torch.Tensor, sigma: float) -> torch.Tensor:
    """The same in several times the time and with another rounding, that of the scores of models that diffad 0.1 trained."""
    if sigma == 0:
        return score_map
    size = 2 * kernel_radius(score_map.shape[-2:], sigma) + 1
    with without_autocast(score_map.device.type):
        return gaussian_blur(score_map[:, None], kernel_size=size, sigma=sigma)[:, 0]
