"""Samples from image files: what the layouts of folders have in common."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..imaging.decoding import pixel_count
from ..imaging.reading import IMAGE_SUFFIXES, read_image
from .ground_truth import file_mask, refuse_shared_masks
from .labels import GOOD_NAMES
from .sample import GOOD, DataError, Sample
from .walk import child, image_files, subfolders

# Finds the mask files of an image, given its path.
FindMasks = Callable[[Path], list[Path]]


def file_sample(
    path: Path,
    root: Path,
    defect: str = GOOD,
    masks: Sequence[Path] = (),
    held_out: bool = False,
    group: str | None = None,
) -> Sample:
    """Sample of an image file, named by its path relative to `root`; several mask files are united."""
    name = path.relative_to(root).as_posix()
    pixels = partial(pixel_count, path)
    return Sample(name, partial(read_image, path), defect, file_mask(masks), held_out, group=group, pixels=pixels)


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
    root: Path, test: Path, truth: Path, mask_finder: Callable[[Path, Path], FindMasks], good: str = GOOD
) -> list[Sample]:
    """Test images in one folder per defect type, with masks in folders of the same names below `truth`.

    Args:
        root: folder that the samples are named relative to.
        test: holds a folder named `good` of good images, and one per defect type.
        mask_finder: given the folders of a defect type's images and masks, the function that finds an image's mask files.
        good: name of the folder of good images, in any case of letters, as all of these names.

    Raises:
        DataError: if there is no folder of good images or a second one, or a mask belongs to no image or to several.
    """
    good_folder = child(test, good)
    if not good_folder.is_dir():
        raise DataError(f"{good_folder}: no such folder; evaluation needs good test images, too")
    pairs: list[tuple[Path, str, list[Path]]] = []
    for folder in subfolders(test):
        if folder == truth:
            continue
        if folder == good_folder:
            pairs += [(path, GOOD, []) for path in image_files(folder)]
            continue
        if folder.name.casefold() in GOOD_NAMES:
            raise DataError(
                f"{folder}: lies beside {good_folder}, and would be a type of defects by that; unite or rename them"
            )
        find = mask_finder(folder, child(truth, folder.name))
        pairs += [(path, folder.name, find(path)) for path in image_files(folder)]
    refuse_shared_masks((path.relative_to(root).as_posix(), masks) for path, _, masks in pairs)
    used = {mask for _, _, masks in pairs for mask in masks}
    for path in image_files(truth) if truth.is_dir() else []:
        if path not in used and path.relative_to(truth).parts[0].casefold() != good.casefold():
            raise DataError(f"{path}: mask without an image in {test}; remove it or restore the image")
    return [file_sample(path, root, defect, masks) for path, defect, masks in pairs]


def draw_training(paths: Sequence[Path], share: float) -> set[Path]:
    """Good images to train on, where a dataset has no split of its own: drawn with a fixed seed from the sorted paths.

    The draw is anomalib's for KolektorSDD (scikit-learn's `train_test_split` with seed 42), so that results compare.

    Raises:
        DataError: with fewer than two images.
    """
    # Imported here because few layouts need it and it takes a second, as long as a prediction of some images.
    from sklearn.model_selection import train_test_split

    if len(paths) < 2:
        raise DataError(f"only {len(paths)} good images; some are needed to train and others to test")
    return set(train_test_split(sorted(paths), train_size=share, random_state=42)[0])
