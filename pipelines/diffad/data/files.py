"""Samples from image files: what the layouts of folders have in common."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from ..imaging.reading import IMAGE_SUFFIXES, read_image, read_mask
from .sample import GOOD, DataError, Mask, Sample


def is_visible_image(path: Path, root: Path) -> bool:
    """Whether the file is an image by its name; files and folders hidden below `root` don't count."""
    return (
        path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden files and folders are left out."""
    return sorted(path for path in folder.rglob("*") if is_visible_image(path, folder))


def subfolders(folder: Path) -> list[Path]:
    """Folders directly inside a folder, sorted; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def file_sample(path: Path, root: Path, defect: str = GOOD, masks: Sequence[Path] = (), held_out: bool = False) -> Sample:
    """Sample of an image file, named by its path relative to `root`; several mask files are united."""
    return Sample(path.relative_to(root).as_posix(), partial(read_image, path), defect, file_mask(masks), held_out)


def file_mask(paths: Sequence[Path]) -> Mask | None:
    if not paths:
        return None
    return Mask(str(paths[0] if len(paths) == 1 else paths[0].parent), partial(_read_union, tuple(paths)))


def good_samples(folder: Path, root: Path, held_out: bool = False) -> list[Sample]:
    """All images of a folder as good ones.

    Raises:
        DataError: if there are none.
    """
    samples = [file_sample(path, root, held_out=held_out) for path in image_files(folder)] if folder.is_dir() else []
    if not samples:
        raise DataError(f"{folder}: no images found ({', '.join(sorted(IMAGE_SUFFIXES))}); put the good images there")
    return samples


def defect_folder_samples(
    root: Path, test: Path, truth: Path, masks_of: Callable[[Path, Path], list[Path]], good: str = GOOD
) -> list[Sample]:
    """Test images in one folder per defect type, with masks in folders of the same names below `truth`.

    Args:
        root: folder that the samples are named relative to.
        test: holds a folder named `good` of normal images, and one per defect type.
        masks_of: finds the mask files of an image, given its path and the folder of its defect type's masks.

    Raises:
        DataError: if there is no folder of good images, or a mask belongs to no image.
    """
    if not (test / good).is_dir():
        raise DataError(f"{test / good}: no such folder; evaluation needs good test images, too")
    samples, used = [], set()
    for folder in subfolders(test):
        if folder == truth:
            continue
        for path in image_files(folder):
            masks = [] if folder.name == good else masks_of(path, truth / folder.name)
            used.update(masks)
            samples.append(file_sample(path, root, GOOD if folder.name == good else folder.name, masks))
    if truth.is_dir():
        stray = [path for path in image_files(truth) if path not in used and path.relative_to(truth).parts[0] != good]
        if stray:
            raise DataError(f"{stray[0]}: mask without an image in {test}; remove it or restore the image")
    return samples


def mask_file(image: Path, folder: Path) -> list[Path]:
    """`<name>_mask` or `<name>` in the folder of masks, with any of the usual suffixes; empty if there is none."""
    for suffix in (".png", image.suffix, ".bmp", ".tif"):
        for stem in (f"{image.stem}_mask", image.stem):
            if (folder / (stem + suffix)).is_file():
                return [folder / (stem + suffix)]
    return []


def is_marked(mask: Path) -> bool:
    """Whether a mask has any defective pixel."""
    return bool(read_mask(mask).any())


def draw_training(paths: Sequence[Path], share: float) -> set[Path]:
    """Good images to train on, where a dataset has no split of its own: drawn with a fixed seed from the sorted paths.

    The draw is anomalib's for KolektorSDD (scikit-learn's `train_test_split` with seed 42), so that results compare.

    Raises:
        DataError: with fewer than two images.
    """
    if len(paths) < 2:
        raise DataError(f"only {len(paths)} good images; some are needed to train and others to test")
    return set(train_test_split(sorted(paths), train_size=share, random_state=42)[0])


def _read_union(paths: tuple[Path, ...]) -> np.ndarray:
    union = read_mask(paths[0])
    for path in paths[1:]:
        mask = read_mask(path)
        if mask.shape != union.shape:
            raise DataError(f"{path}: mask of another size than {paths[0]}")
        union = np.maximum(union, mask)
    return union
