"""Decodes every image and mask of a dataset once and counts what was seen."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from ..imaging.decoding import ImageError, ImageWarning
from .sample import Sample


@dataclass
class ImageCheck:
    """What decoding a list of samples showed.

    Args:
        sizes: `(width, height)` in pixels with the number of images that have it.
        colour, grey: images with and without colour; a grey image stored as RGB is grey.
        digests: hash of the decoded pixels by sample name.
        unreadable: one message per image or mask that can't be used.
        doubtful: one message per image or mask that is used, but perhaps not as it is meant.
        masks: of defective images: with mask, without, blank, and of another size than their image.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    colour: int = 0
    grey: int = 0
    digests: dict[str, bytes] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    masks: Counter[str] = field(default_factory=Counter)


def check_images(samples: Sequence[Sample]) -> ImageCheck:
    """Decodes every image and mask; memory is bounded by one image."""
    check = ImageCheck()
    for sample in tqdm(samples, desc="reading images", disable=None, leave=False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ImageWarning)
            _check_image(sample, check)
        check.doubtful += [str(warning.message) for warning in caught if issubclass(warning.category, ImageWarning)]
    return check


def _check_image(sample: Sample, check: ImageCheck) -> None:
    try:
        pixels = np.asarray(sample.read())
    except ImageError as error:
        check.unreadable.append(str(error))
        return
    check.sizes[pixels.shape[1], pixels.shape[0]] += 1
    is_grey = (pixels == pixels[..., :1]).all()
    check.grey += is_grey
    check.colour += not is_grey
    check.digests[sample.name] = hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).digest()
    if sample.is_defective:
        _check_mask(sample, pixels.shape[:2], check)


def _check_mask(sample: Sample, shape: tuple[int, int], check: ImageCheck) -> None:
    check.masks["present" if sample.mask else "missing"] += 1
    if not sample.mask:
        return
    try:
        mask = sample.mask.read()
    except ValueError as error:  # ImageError, or DataError where several files differ in size
        check.unreadable.append(str(error))
        return
    check.masks["blank"] += not mask.any()
    check.masks["of another size"] += mask.shape != shape
