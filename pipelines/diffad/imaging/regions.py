"""Defects as a mask shows them: where they are and how large."""

import numpy as np
from scipy.ndimage import find_objects, label

TOUCHING = np.ones((3, 3), dtype=int)  # pixels that meet at a corner belong together, as in AUPRO's definition


def connected_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the 8-connected regions of a boolean mask `(H, W)` from 1 on, 0 outside: labels `(H, W)` and their count."""
    return label(mask, TOUCHING)


def region_peaks(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Highest value of the connected region that each pixel of a mask `(H, W)` belongs to.

    Args:
        values: `(H, W)` float.
        mask: `(H, W)` bool.

    Returns:
        `(H, W)` of the values' type, -inf outside the mask.
    """
    labels, count = connected_regions(mask)
    peaks = np.full(count + 1, -np.inf, dtype=values.dtype)
    np.maximum.at(peaks, labels[mask], values[mask])  # one pass for all regions: there can be many thousands
    return peaks[labels]


def bounding_boxes(mask: np.ndarray) -> list[list[int]]:
    """Boxes around the connected regions of a boolean mask `(H, W)`, the largest region first.

    Returns:
        `[left, top, right, bottom]` in pixels for every region, right and bottom just outside of it.
    """
    if not mask.any():  # as of most parts; labelling takes 2 ms for 512x512 pixels
        return []
    labels, count = connected_regions(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = [[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in find_objects(labels)]
    return [boxes[i] for i in np.argsort(-areas, kind="stable")]
