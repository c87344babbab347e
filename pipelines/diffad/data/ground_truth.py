"""Masks of defective images: which file belongs to which image, and what must hold before anything is scored with them."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..imaging.decoding import ImageWarning
from ..imaging.masks import read_mask
from .layout import Source
from .sample import DataError, Mask, Sample
from .split import first_few
from .walk import image_files

MOST_BLANK = 0.05  # of an evaluation's masks; published data has a few, more of them were exported wrongly


class MaskFolder:
    """Masks that lie in a folder of their own, named like their images or `<name>_mask`, in any image format.

    A mask in the subfolder that corresponds to its image's is that image's. Masks in folders that correspond to none with
    images may belong to an image anywhere, so that masks may lie deeper or less deep than their images.

    Args:
        images: folder of images.
        masks: folder of their masks; it need not exist.
    """

    def __init__(self, images: Path, masks: Path):
        self.images, self.path = images, masks
        self._masks: dict[str, list[Path]] = defaultdict(list)
        for path in image_files(masks) if masks.is_dir() else []:
            self._masks[path.stem.casefold()].append(path)
        self._image_folders = {path.parent.relative_to(images) for path in image_files(images)} if images.is_dir() else set()

    def find(self, image: Path) -> list[Path]:
        """The mask of an image, or an empty list.

        Raises:
            DataError: if several files may be its mask.
        """
        stem = image.stem.casefold()
        candidates = [*self._masks.get(f"{stem}_mask", ()), *self._masks.get(stem, ())]
        folder = image.parent.relative_to(self.images)
        places = {mask: mask.parent.relative_to(self.path) for mask in candidates}
        found = [mask for mask in candidates if places[mask] == folder]
        found = found or [mask for mask in candidates if places[mask] not in self._image_folders]
        if len(found) > 1:  # names that differ in the case of their letters only
            found = [mask for mask in found if mask.stem.startswith(image.stem)] or found
        if len(found) > 1:
            raise DataError(f"{image}: may have the masks {found[0]} and {found[1]}; remove or rename all but one")
        return found


def refuse_shared_masks(masks: Iterable[tuple[str, Sequence[Path]]]) -> None:
    """Raises DataError if a mask belongs to several images, named as in the pairs of image and masks."""
    owners: dict[Path, str] = {}
    for image, files in masks:
        for mask in files:
            if owners.setdefault(mask, image) != image:
                raise DataError(
                    f"{mask}: is the mask of both {owners[mask]} and {image}; give each its own, in folders named like theirs"
                )


def file_mask(paths: Sequence[Path]) -> Mask | None:
    """Mask of one file or of several, which are united; None of no file."""
    if not paths:
        return None
    return Mask(str(paths[0] if len(paths) == 1 else paths[0].parent), partial(_read_union, tuple(paths)))


def is_marked(mask: Path) -> bool:
    """Whether a mask has any defective pixel."""
    return bool(read_mask(mask).any())


def check_masks(samples: Sequence[Sample], source: Source) -> None:
    """Decodes the masks of all defective images, so that what is wrong with them shows before hours of scoring.

    Args:
        source: of the samples, for errors.

    Raises:
        ImageError: naming the first mask that can't be used.
        DataError: if some defective images have masks and others don't, or masks are blank; of one in twenty it is only warned.
    """
    defective = [sample for sample in samples if sample.is_defective]
    masked = [sample for sample in defective if sample.mask]
    bare = [sample.name for sample in defective if not sample.mask]
    if bare and masked:
        raise DataError(
            f"{bare[0]}: no mask in {source}, though other defective images have one; add it, or remove all masks for image "
            "metrics only"
        )
    blank = [sample.mask.name for sample in masked if not sample.mask.read().any()]
    if blank:
        text = f"{len(blank)} of {len(masked)} masks of defective images are blank: {first_few(blank)}"
        if len(blank) > MOST_BLANK * len(masked):
            raise DataError(f"{text}; mark the defects, or remove all masks for image metrics only")
        warnings.warn(f"{text}; pixel metrics take all of their images' pixels for good ones", ImageWarning, stacklevel=2)


def load_mask(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """Ground truth `(height, width)` bool at `size`; all False for good images, and where a mask is blank.

    Box-filtered and binarised at 0.5; where nothing of an image's mask survives that, every pixel it touches counts.

    Raises:
        ImageError: if the mask or the image can't be decoded.
        DataError: if there is no mask, or its size differs from its image's.
    """
    if not sample.is_defective:
        return np.zeros(size, dtype=bool)
    if sample.mask is None:
        raise DataError(f"{sample.name}: has no ground-truth mask")
    mask = sample.mask.read()
    image = sample.read()
    if mask.shape != (image.height, image.width):
        raise DataError(
            f"{sample.mask.name}: mask of {mask.shape[1]}x{mask.shape[0]} pixels for an image of {image.width}x{image.height}"
        )
    coverage = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.BOX))
    resized = coverage >= 0.5
    return resized if resized.any() else coverage > 0


def _read_union(paths: tuple[Path, ...]) -> np.ndarray:
    union = read_mask(paths[0])
    for path in paths[1:]:
        mask = read_mask(path)
        if mask.shape != union.shape:
            raise DataError(f"{path}: mask of another size than {paths[0]}")
        union = np.maximum(union, mask)
    return union
