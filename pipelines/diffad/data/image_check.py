"""Decodes every image and mask of a dataset once and counts what was seen."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm.auto import tqdm

from ..imaging.reading import ImageError
from .sample import Sample


@dataclass
class Images:
    """What decoding a list of samples showed.

    Args:
        sizes: `(width, height)` in pixels with the number of images that have it.
        colour, grey: images with and without colour; a grey image stored as RGB is grey.
        digests: hash of the decoded pixels by sample name.
        unreadable: one message per image or mask that can't be used.
        masks: of defective images: with mask, without, blank, and of another size than their image.
    """

    sizes: Counter = field(default_factory=Counter)
    colour: int = 0
    grey: int = 0
    digests: dict[str, bytes] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    masks: Counter = field(default_factory=Counter)


def inspect_images(samples: Sequence[Sample]) -> Images:
    """Decodes every image and mask; memory is bounded by one image."""
    images = Images()
    for sample in tqdm(samples, desc="reading images", disable=None, leave=False):
        try:
            pixels = np.asarray(sample.read())
        except ImageError as error:
            images.unreadable.append(str(error))
            continue
        images.sizes[pixels.shape[1], pixels.shape[0]] += 1
        is_grey = (pixels == pixels[..., :1]).all()
        images.grey += is_grey
        images.colour += not is_grey
        images.digests[sample.name] = hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).digest()
        if sample.is_defective:
            _inspect_mask(sample, pixels.shape[:2], images)
    return images


def _inspect_mask(sample: Sample, shape: tuple[int, int], images: Images) -> None:
    images.masks["present" if sample.mask else "missing"] += 1
    if not sample.mask:
        return
    try:
        mask = sample.mask.read()
    except ValueError as error:
        images.unreadable.append(str(error))
        return
    images.masks["blank"] += not mask.any()
    images.masks["of another size"] += mask.shape != shape
