"""Windows of the model's resolution in which the marked regions of a larger image are repaired: pure functions."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects

from ..imaging.regions import connected_regions
from ..scoring.tiling import tile_starts

OVERLAP = 0.25  # share of a window that neighbours have in common; half of it lies around a region at least


@dataclass(frozen=True)
class Window:
    """A part of one image of a batch.

    Args:
        image: index of the image.
        top, left: upper left corner of the window in it.
        own: bool `(*size)`, the pixels of the window that are repaired in it.
    """

    image: int
    top: int
    left: int
    own: np.ndarray

    @property
    def place(self) -> tuple:
        """Index of the window in a batch `(B, C, H, W)`."""
        height, width = self.own.shape
        return self.image, slice(None), slice(self.top, self.top + height), slice(self.left, self.left + width)

    def overlaps(self, other: "Window") -> bool:
        """Whether both are of one image, of one size, and have a pixel in common."""
        height, width = self.own.shape
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
        image: index of the image that the windows are of.
    """
    labels, count = connected_regions(region)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    left_over = region.copy()
    windows = []
    extents = find_objects(labels)
    for index in 1 + np.argsort(-areas[1:], kind="stable"):  # the largest region first
        rows, columns = extents[index - 1]
        for top in _starts(rows, size[0], region.shape[0]):
            for left in _starts(columns, size[1], region.shape[1]):
                part = slice(top, top + size[0]), slice(left, left + size[1])
                inner = _inner(top, size[0], region.shape[0]), _inner(left, size[1], region.shape[1])
                # By number, the regions that lie well inside as a whole.
                repaired = np.bincount(labels[inner].ravel(), minlength=count + 1) == areas
                repaired[index] = True
                own = left_over[part] & repaired[labels[part]]
                if own[labels[part] == index].any():
                    left_over[part] &= ~own
                    windows.append(Window(image, top, left, own))
    return windows


def in_turns(windows: list[Window]) -> list[list[Window]]:
    """The windows in turns: each after the earlier ones that it overlaps, together with those that it does not."""
    turns: list[list[Window]] = []
    for window in windows:
        later_than = [turn for turn, earlier in enumerate(turns) if any(window.overlaps(other) for other in earlier)]
        turn = later_than[-1] + 1 if later_than else 0
        if turn == len(turns):
            turns.append([])
        turns[turn].append(window)
    return turns


def _margin(window: int) -> int:
    """Pixels that surround a region in its window at least, but for the image's border."""
    return round(OVERLAP * window / 2)


def _starts(extent: slice, window: int, length: int) -> list[int]:
    """First pixels of the windows that cover one side of a region with what surrounds it, in an image of `length` pixels."""
    covered = min(max(window, extent.stop - extent.start + 2 * _margin(window)), length)
    first = min(max((extent.start + extent.stop - covered) // 2, 0), length - covered)
    return [first + start for start in tile_starts(covered, window, OVERLAP)]


def _inner(start: int, window: int, length: int) -> slice:
    """One side of a window without its margins, but for the image's border."""
    stop = start + window
    return slice(start + _margin(window) if start > 0 else 0, stop - _margin(window) if stop < length else length)
