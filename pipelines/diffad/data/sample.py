"""One image of a dataset with its ground truth, read on demand, and what is done with lists of them."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
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
        defect: name of the defect type, `good` for normal images.
        mask: ground truth of a defective image, if there is one.
        held_out: the dataset itself sets this training image aside for validation.
        category: index of its category, where there are several.
    """

    name: str
    read: Callable[[], Image.Image]
    defect: str = GOOD
    mask: Mask | None = None
    held_out: bool = False
    category: int = 0

    @property
    def is_defective(self) -> bool:
        return self.defect != GOOD


def split_held_out(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Splits off held-out normal images for validation and calibration: `(training, held_out)`, both in order.

    Where the dataset has a validation split of its own, that is held out, whatever `fraction` and `seed`. At least two images
    go to either side. Every category is split as it would be without the others.

    Raises:
        DataError: with fewer than four images of a category, or fewer than two on one side of the dataset's own split.
    """
    chosen = set()
    for label in sorted({sample.category for sample in samples}) or [0]:
        chosen |= _choose_held_out(samples, [i for i, sample in enumerate(samples) if sample.category == label], fraction, seed)
    training = [sample for i, sample in enumerate(samples) if i not in chosen]
    return training, [sample for i, sample in enumerate(samples) if i in chosen]


def _choose_held_out(samples: Sequence[Sample], places: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Which places of one category's samples are held out."""
    if len(places) < 4:
        names = ", ".join(samples[i].name for i in places) or "none"
        raise DataError(f"only {len(places)} good images ({names}); at least 4 are needed to train and to calibrate")
    own = {i for i in places if samples[i].held_out}
    if not own:
        count = min(max(round(len(places) * fraction), 2), len(places) - 2)
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed), device="cpu")
        return {places[i] for i in order[:count].tolist()}
    if min(len(own), len(places) - len(own)) < 2:
        raise DataError(
            f"{len(places) - len(own)} training and {len(own)} validation images (such as {samples[places[0]].name}); at least "
            "2 of each are needed, or no validation split at all"
        )
    return own


def load_mask(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """Ground truth `(height, width)` bool at `size`; all False for good images.

    Box-filtered and binarised at 0.5; where nothing of an image's mask survives that, every pixel it touches counts.

    Raises:
        DataError: if the mask's size differs from its image's. An empty mask is only warned about.
    """
    if not sample.is_defective:
        return np.zeros(size, dtype=bool)
    if sample.mask is None:
        raise DataError(f"{sample.name}: has no ground-truth mask")
    mask = sample.mask.read()
    if not mask.any():
        # Published datasets have such masks, so that refusing them would refuse the dataset.
        warnings.warn(f"{sample.mask.name}: empty mask; the image counts as defective, without a defective pixel", stacklevel=2)
    image = sample.read()
    if mask.shape != (image.height, image.width):
        raise DataError(
            f"{sample.mask.name}: mask of {mask.shape[1]}x{mask.shape[0]} pixels for an image of {image.width}x{image.height}"
        )
    coverage = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.BOX))
    resized = coverage >= 0.5
    return resized if resized.any() else coverage > 0
