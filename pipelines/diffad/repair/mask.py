"""Where an image is to be repaired."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, binary_fill_holes

from ..imaging.array_maps import normal_level
from ..imaging.maps import smooth_map
from ..imaging.regions import region_peaks


def defect_region(
    anomaly_map: torch.Tensor, threshold: torch.Tensor, level: float, peak_share: float, margin: int
) -> torch.Tensor:
    """Defects of a map: connected regions that reach above the threshold, each down to a share of its own peak.

    Maps are blurred, so that a strong defect lifts a wide surrounding above any fixed level; its edge lies near half its peak.
    Heights are above the normal level, which for a positive threshold is 0.
    The map's maximum counts as a region even below the threshold, because an image can be defective by its score alone.

    Args:
        anomaly_map: `(B, H, W)`.
        threshold: `(B,)`, of each map's values, above which a pixel is called defective.
        level: share of the threshold's height that all pixels of a region exceed.
        peak_share: share of the height of its region's maximum that every pixel exceeds.
        margin: pixels by which regions are widened, because defects have edges.

    Returns:
        `(B, 1, H, W)` float, 1 inside, without holes.
    """
    regions = []
    for values, highest in zip(anomaly_map.cpu().numpy(), threshold.tolist(), strict=True):
        region = _defects(values, highest, level, peak_share)
        if margin:
            region = binary_dilation(region, iterations=margin)
        regions.append(binary_fill_holes(region))
    return torch.from_numpy(np.stack(regions)).to(anomaly_map)[:, None]


def _defects(values: np.ndarray, threshold: float, level: float, peak_share: float) -> np.ndarray:
    """Bool `(H, W)`, the defects of one map `(H, W)`, neither widened nor filled."""
    lowest_peak = min(threshold, values.max())
    normal = normal_level(lowest_peak)
    peaks = region_peaks(values, values >= normal + level * (lowest_peak - normal))
    return (peaks >= lowest_peak) & (values >= normal + peak_share * (peaks - normal))


def differs_from_prediction(images: torch.Tensor, denoised: torch.Tensor, difference: float) -> torch.Tensor:
    """`(B, 1, H, W)`, 1 within two pixels of where images `(B, 3, H, W)` are further than `difference` from `denoised`.

    The distance is averaged over channels and smoothed by a pixel, so that the texture of a surface alone does not count.
    """
    distance = smooth_map((images - denoised).abs().mean(dim=1), 1.0)[:, None]  # (B, 1, H, W)
    return F.max_pool2d((distance > difference).to(images), kernel_size=5, stride=1, padding=2)


def soft_edge(region: torch.Tensor, sigma: float = 2.0) -> torch.Tensor:
    """Opacity `(B, 1, H, W)` of the repaired image: 1 inside the region, falling to 0 outside within a few pixels."""
    blurred = smooth_map(region[:, 0], sigma)[:, None]
    # A convolution by way of a Fourier transform leaves traces of nothing everywhere.
    return torch.maximum(region, torch.where(blurred > 1e-4, blurred, 0))
