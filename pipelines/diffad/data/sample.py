"""One image of a dataset with its ground truth, read on demand."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

GOOD = "good"


class DataError(ValueError):
    """A folder or dataset that can't be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Mask:
    """Ground truth of a defective image.

    Args:
        name: of its file, or of the folder of several files.
        read: decodes it to `(height, width)` float32 in [0, 1], 1 on defects, or raises ImageError naming it.
    """

    name: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Sample:
    """One image of a dataset, read on demand.

    Args:
        name: unique within its dataset, for files the path relative to the dataset.
        read: decodes the image as 8-bit RGB, or raises ImageError naming it.
        defect: name of the defect type, `good` for good images.
        mask: ground truth of a defective image, if there is one.
        held_out: the dataset itself sets this training image aside for validation.
        category: index of its category, where there are several.
        group: images of one group, such as photographs of one part, are alike: they are held out together or not at all. None
            where the dataset says nothing of it; the image is then a group of its own.
        pixels: tells how many pixels the image has without decoding it; 0 where that is not known.
    """

    name: str
    read: Callable[[], Image.Image]
    defect: str = GOOD
    mask: Mask | None = None
    held_out: bool = False
    category: int = 0
    group: str | None = None
    pixels: Callable[[], int] = int

    @property
    def is_defective(self) -> bool:
        return self.defect != GOOD
