"""Where images come from: a MVTec-layout folder, a plain folder of good images, or a `datasets` dataset."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .image_io import IMAGE_SUFFIXES, ImageError, read_image, read_mask, to_rgb

GOOD = "good"


class DataError(ValueError):
    """A folder or dataset that can't be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Sample:
    """One image of a dataset, read on demand.

    Args:
        name: unique within its dataset, for files the path relative to the dataset.
        read: decodes the image as 8-bit RGB, or raises ImageError naming it.
        defect: folder name of the defect type, `good` for normal images.
        mask_path: ground-truth mask of a defective image, if there is one.
        class_label: index of its category, where there are several.
    """

    name: str
    read: Callable[[], Image.Image]
    defect: str = GOOD
    mask_path: Path | None = None
    class_label: int = 0

    @property
    def is_defective(self) -> bool:
        return self.defect != GOOD


def training_samples(source: str | Path) -> list[Sample]:
    """Good images to train on, in a fixed order.

    Args:
        source: folder with `train/good` (MVTec layout), folder of good images (searched recursively), folder written by
            `datasets.save_to_disk`, or the name of a dataset on the Hub. Datasets need a column of images, and of a
            `DatasetDict` the split `train` is taken.

    Raises:
        DataError: if there is no such source or it holds no images.
    """
    if not Path(source).is_dir():
        if _looks_like_path(source):
            raise DataError(f"{source}: no such folder")
        return _dataset_samples(str(source))
    source = Path(source)
    if _is_saved_dataset(source):
        return _dataset_samples(source)
    folder = source / "train" / GOOD
    if (source / "train").is_dir() and not folder.is_dir():
        raise DataError(f"{source}: has a train folder but no train/{GOOD}; put the good images there")
    if not folder.is_dir() and any(path.is_dir() for name in ("test", "ground_truth") for path in source.rglob(name)):
        raise DataError(
            f"{source}: holds test or ground_truth folders but no train/{GOOD}, so defects would be taken for good images; "
            "name a folder with train/good, or one of good images only"
        )
    samples = [_file_sample(path, source) for path in image_files(folder if folder.is_dir() else source)]
    if not samples:
        raise DataError(f"{folder if folder.is_dir() else source}: no images found ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return samples


def category_samples(root: str | Path, categories: Sequence[str]) -> list[Sample]:
    """Good images of several categories to train on, each a source of its own in the folder `root`; labelled by its place.

    Raises:
        DataError: if there is no such source or it holds no images.
    """
    return [
        replace(sample, name=f"{category}/{sample.name}", class_label=label)
        for label, category in enumerate(categories)
        for sample in training_samples(Path(root) / category)
    ]


def evaluation_samples(source: str | Path) -> list[Sample]:
    """Test images of a MVTec-layout folder with their defect types and masks.

    Every image of `test/<defect>` needs `ground_truth/<defect>/<name>_mask.<suffix>`, unless the folder has no
    `ground_truth` at all: then only image-level metrics exist.

    Raises:
        DataError: if `test/good` or defective images are missing, or images and masks do not pair up.
    """
    source = Path(source)
    test, truth = source / "test", source / "ground_truth"
    if not (test / GOOD).is_dir():
        raise DataError(f"{source}: no test/{GOOD} folder; evaluation needs test/{GOOD} and test/<defect> folders")
    samples, used = [], set()
    for folder in sorted(path for path in test.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for path in image_files(folder):
            mask_path = None
            if folder.name != GOOD and truth.is_dir():
                mask_path = _mask_of(path, truth / folder.name)
                used.add(mask_path)
            samples.append(_file_sample(path, source, folder.name, mask_path))
    unused = sorted(path for path in set(image_files(truth)) - used if path.parent.name != GOOD) if truth.is_dir() else []
    if unused:
        raise DataError(f"{unused[0]}: mask without an image in {test}; remove it or restore the image")
    if not any(sample.is_defective for sample in samples):
        raise DataError(f"{test}: no defective images; put them into test/<defect>")
    if all(sample.is_defective for sample in samples):
        raise DataError(f"{test / GOOD}: no images found; evaluation needs good images, too")
    return samples


def split_held_out(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Splits off held-out normal images for validation and calibration: `(training, held_out)`, both in order.

    At least two images of every category go to either side, and each is split as it would be without the others.

    Raises:
        DataError: with fewer than four images of a category.
    """
    held_out = set()
    for label in sorted({sample.class_label for sample in samples}) or [0]:
        places = [i for i, sample in enumerate(samples) if sample.class_label == label]
        if len(places) < 4:
            names = ", ".join(samples[i].name for i in places) or "none"
            raise DataError(f"only {len(places)} good images ({names}); at least 4 are needed to train and to calibrate")
        count = min(max(round(len(places) * fraction), 2), len(places) - 2)
        drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed), device="cpu")[:count]
        held_out.update(places[i] for i in drawn.tolist())
    training = [sample for i, sample in enumerate(samples) if i not in held_out]
    return training, [sample for i, sample in enumerate(samples) if i in held_out]


def load_mask(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """Ground truth `(height, width)` bool at `size`; all False for good images.

    Box-filtered and binarised at 0.5; where nothing of an image's mask survives that, every pixel it touches counts.

    Raises:
        DataError: if the mask's size differs from its image's. An empty mask is only warned about.
    """
    if not sample.is_defective:
        return np.zeros(size, dtype=bool)
    if sample.mask_path is None:
        raise DataError(f"{sample.name}: has no ground-truth mask")
    mask = read_mask(sample.mask_path)
    if not mask.any():
        # Published datasets have such masks, so that refusing them would refuse the dataset.
        warnings.warn(f"{sample.mask_path}: empty mask; the image counts as defective, without a defective pixel", stacklevel=2)
    image = sample.read()
    if mask.shape != (image.height, image.width):
        raise DataError(
            f"{sample.mask_path}: mask of {mask.shape[1]}x{mask.shape[0]} pixels for an image of {image.width}x{image.height}"
        )
    coverage = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.BOX))
    resized = coverage >= 0.5
    return resized if resized.any() else coverage > 0


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden files and folders are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _file_sample(path: Path, root: Path, defect: str = GOOD, mask_path: Path | None = None) -> Sample:
    return Sample(str(path.relative_to(root)), partial(read_image, path), defect, mask_path)


def _mask_of(image: Path, folder: Path) -> Path:
    for suffix in (".png", image.suffix, ".bmp", ".tif"):
        for stem in (f"{image.stem}_mask", image.stem):
            if (folder / (stem + suffix)).is_file():
                return folder / (stem + suffix)
    raise DataError(f"{image}: no mask {folder / image.stem}_mask.png; add it, or remove ground_truth for image metrics only")


def _looks_like_path(source: str | Path) -> bool:
    """Hub names are `name` or `owner/name`; anything else can only mean a folder."""
    return isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _dataset_samples(source: str | Path) -> list[Sample]:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(source)) if isinstance(source, Path) else datasets.load_dataset(source)
    except Exception as error:
        raise DataError(f"{source}: neither a folder nor a loadable dataset ({error})") from error
    if isinstance(dataset, datasets.DatasetDict):
        if "train" not in dataset:
            raise DataError(f"{source}: no split 'train', only {', '.join(dataset)}")
        dataset = dataset["train"]
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise DataError(f"{source}: no image column among {', '.join(dataset.features)}")
    names = [f"{source}[{i}]" for i in range(len(dataset))]
    return [Sample(name, partial(_read_row, dataset, columns[0], i, name)) for i, name in enumerate(names)]


def _read_row(dataset, column: str, index: int, name: str) -> Image.Image:
    try:
        image = dataset[index][column]
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{name}: damaged image ({error}); remove the row") from error
    if image is None:
        raise ImageError(f"{name}: has no image; remove the row")
    return to_rgb(image, name)
