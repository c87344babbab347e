"""Windows of the model's resolution in which the marked regions of a larger image are repaired: pure functions."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import find_objects

from ..imaging.regions import connected_regions
from ..scoring.tiling import tile_starts

OVERLAP = 0.25  # share of a window that neighbours have in common; half of it lies around a region at least


@dataclass(frozen=True)
class Window:
    """A part of one image of a batch.

    Args:
        image: number of the image in the batch.
        top, left: upper left corner of the window in it.
        to_repair: bool `(h, w)` of the window's size, the pixels that are repaired in this window.
    """

    image: int
    top: int
    left: int
    to_repair: np.ndarray

    @property
    def index(self) -> tuple[int, slice, slice, slice]:
        """Index of the window in a batch `(B, C, H, W)`, where it has `(C, h, w)`."""
        height, width = self.to_repair.shape
        return self.image, slice(None), slice(self.top, self.top + height), slice(self.left, self.left + width)

    def overlaps(self, other: "Window") -> bool:
        """Whether both are of one image, of one size, and have a pixel in common."""
        height, width = self.to_repair.shape
        return self.image == other.image and abs(self.top - other.top) < height and abs(self.left - other.left) < width


def repair_windows(region: np.ndarray, size: tuple[int, int], image: int = 0) -> list[Window]:
    """Windows that share out a region, so that each of its pixels is repaired in one of them.

    Every connected region gets one window with the region in its middle, moved inside the image where it sticks out. One that
    does not fit with what surrounds it gets several overlapping ones, row by row, of which each repairs what the earlier ones
    have left. A window also repairs the smaller regions that lie well inside it. In an image of the windows' size there is one
    window, of all regions.

    Args:
        region: bool `(H, W)`, each side at least that of a window.
        size: `(height, width)` of the windows.
        image: number of the image in its batch.
    """
    labels, count = connected_regions(region)
    areas = np.bincount(labels.ravel(), minlength=count + 1)  # (count + 1,), of label 0 the rest of the image
    extents = find_objects(labels)
    remaining = region.copy()  # (H, W), not in any window yet
    windows = []
    for label in 1 + np.argsort(-areas[1:], kind="stable"):  # the largest region first
        rows, columns = extents[label - 1]
        for top in _starts(rows, size[0], region.shape[0]):
            for left in _starts(columns, size[1], region.shape[1]):
                part = slice(top, top + size[0]), slice(left, left + size[1])
                if not (remaining[part] & (labels[part] == label)).any():
                    continue  # an earlier window repairs what of this region lies here
                middle = _without_margins(top, size[0], region.shape[0]), _without_margins(left, size[1], region.shape[1])
                # Regions that lie in the middle as a whole, by label.
                included = np.bincount(labels[middle].ravel(), minlength=count + 1) == areas
                included[label] = True
                to_repair = remaining[part] & included[labels[part]]
                remaining[part] &= ~to_repair
                windows.append(Window(image, top, left, to_repair))
    return windows


def in_rounds(windows: list[Window]) -> list[list[Window]]:
    """The windows in rounds: each in the round after the earlier windows that it overlaps, as early as that allows."""
    rounds: list[list[Window]] = []
    for window in windows:
        before = [number for number, earlier in enumerate(rounds) if any(window.overlaps(other) for other in earlier)]
        number = before[-1] + 1 if before else 0
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(window)
    return rounds


def cut_windows(images: torch.Tensor, windows: list[Window]) -> torch.Tensor:
    """What images `(B, C, H, W)` hold in N windows, `(N, C, h, w)`."""
    return torch.stack([images[window.index] for window in windows])


def paste_windows(images: torch.Tensor, contents: torch.Tensor, windows: list[Window]) -> torch.Tensor:
    """A copy of images `(B, C, H, W)` with the contents `(N, C, h, w)` of N windows that don't overlap."""
    images = images.clone()
    for window, content in zip(windows, contents, strict=True):
        images[window.index] = content
    return images


def repair_masks(windows: list[Window], like: torch.Tensor) -> torch.Tensor:
    """`(N, 1, h, w)`, 1 on the pixels that are repaired in each of N windows, in the type of `like` and on its device."""
    return torch.stack([torch.from_numpy(window.to_repair)[None] for window in windows]).to(like)


def _margin(window: int) -> int:
    """Pixels that surround a region in its window at least, but for the image's border."""
    return round(OVERLAP * window / 2)


def _starts(extent: slice, window: int, length: int) -> list[int]:
    """First pixels of the windows that cover one side of a region with what surrounds it, in an image of `length` pixels."""
    covered = min(max(window, extent.stop - extent.start + 2 * _margin(window)), length)
    first = min(max((extent.start + extent.stop - covered) // 2, 0), length - covered)
    return [first + start for start in tile_starts(covered, window, OVERLAP)]


def _without_margins(start: int, window: int, length: int) -> slice:
    """One side of a window without its margins, but for the image's border."""
    stop = start + window
    return slice(start + _margin(window) if start > 0 else 0, stop - _margin(window) if stop < length else length)
