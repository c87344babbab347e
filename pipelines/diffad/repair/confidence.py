"""Whether enough of a part is left to tell what the marked place should have looked like."""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import ConvexHull

from ..imaging.regions import connected_regions
from .mask import defect_region

MARK_LEVEL = 0.35  # of the pixel threshold: lower than where anything is repaired
MARK_SHARE = 0.3  # of a region's peak
REACH = 0.15  # of the shorter side of an image: marks that are no further apart enclose what is between them


def enclosed_share(marked: np.ndarray) -> float:
    """Share of an image that marks `(H, W)` bool enclose: the convex hulls of all groups of marks that lie near each other.

    A map marks of a very large defect often no more than its edges, because what is inside is like a good part elsewhere.
    """
    if not marked.any():
        return 0.0
    groups, count = connected_regions(distance_transform_edt(~marked) <= REACH * min(marked.shape) / 2)
    area = 0.0
    for group in range(1, count + 1):
        pixels = np.argwhere(marked & (groups == group))  # (n, 2)
        corners = [pixels + corner for corner in np.ndindex(2, 2)]
        area += ConvexHull(np.concatenate(corners)).volume  # that of a plane hull is its area
    return min(area / marked.size, 1.0)


def is_told(anomaly_map: torch.Tensor, threshold: torch.Tensor, replaced: torch.Tensor, most: float) -> torch.Tensor:
    """`(B,)` bool, True where what is marked or replaced encloses no more than a share of the image.

    Args:
        anomaly_map: `(B, H, W)`, of the defective images as they came.
        threshold: `(B,)`, of the map's values.
        replaced: `(B, 1, H, W)`, above 0 where something was replaced.
        most: the share.
    """
    marked = torch.maximum(defect_region(anomaly_map, threshold, MARK_LEVEL, MARK_SHARE, margin=0), replaced)
    shares = [enclosed_share(of_image > 0) for of_image in marked[:, 0].cpu().numpy()]
    return torch.tensor(shares, device=replaced.device) <= most
