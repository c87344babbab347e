"""Datasets of the `datasets` library: saved folders, names on the Hub, and dataset objects, map-style or streamed.

The image is the column of images that is not named like a mask (of several, the one named `image`), the mask the one that is;
the label is a column `label` of class names or text, one of which means good (good, ok, normal), or of numbers or booleans, 0
for good and 1 for defective. Splits are `train`, `validation` and `test`; a dataset without splits is `train`. Defective images
of train and validation are left out. Images are decoded here, not by `datasets`, which opens any format.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from ..imaging.decoding import ImageError, failures_named
from ..imaging.masks import read_mask
from ..imaging.reading import read_image
from .labels import GOOD_NAMES, NUMBERED_DEFECT, defect_of
from .layout import Layout, Source
from .sample import GOOD, DataError, Mask, Sample

Encoded = Callable[[], bytes]  # raises ImageError
MASK_NAMES = frozenset({"mask", "masks", "ground_truth", "gt", "segmentation", "segmentation_mask", "defect_mask"})


def recognize(source: Source) -> bool:
    """Whether it is a dataset object, a folder written by `save_to_disk`, or a name on the Hub (`owner/name`)."""
    if isinstance(source, Path):
        # `state.json` alone is a name that other programs give their files, too.
        is_dataset = all((source / name).is_file() for name in ("state.json", "dataset_info.json"))
        return is_dataset or (source / "dataset_dict.json").is_file()
    return not isinstance(source, str) or is_hub_name(source)


def is_hub_name(source: str) -> bool:
    """`owner/name` with no folder of either name here: anything else can only be a path, and is never looked up."""
    owner, _, name = source.partition("/")
    looks_like_name = all(part and not part.startswith((".", "~")) for part in (owner, name)) and "/" not in name
    with suppress(HFValidationError):
        validate_repo_id(source)
        return looks_like_name and not Path(owner).exists()
    return False


def training_samples(source: Source) -> list[Sample]:
    """Good images of the splits train and validation."""
    splits = _load(source)
    if "train" not in splits:
        raise DataError(f"{_name(source)}: no split 'train', only {', '.join(splits)}")
    samples = _split_samples(splits, "train", source)
    if "validation" in splits:
        samples += _split_samples(splits, "validation", source)
    return [sample for sample in samples if not sample.is_defective]


def test_samples(source: Source) -> list[Sample]:
    """Images of the split test with their masks."""
    splits = _load(source)
    if "test" not in splits:
        return []
    if _good_labels(splits["test"]) is None:
        raise DataError(
            f"{_name(source)}: split 'test' has no column label of class names, one of them good, ok or normal, or of 0 for "
            "good and 1 for defective"
        )
    return _split_samples(splits, "test", source)


def stream_samples(source: Source, split: str = "train") -> Iterator[Sample]:
    """Samples of a stream one by one, in its order; each holds its own encoded image, nothing else is kept.

    Args:
        source: name of a dataset on the Hub, downloaded only as far as it is iterated, or a `datasets.IterableDataset`.
        split: of a dataset on the Hub.

    Raises:
        DataError: if it can't be loaded, or has no such split or no images.
    """
    import datasets

    if isinstance(source, str):
        splits = _call(source, partial(datasets.load_dataset, source, streaming=True))
        if split not in splits:
            raise DataError(f"{source}: no split {split!r}, only {', '.join(splits)}")
        stream = splits[split]
    else:
        stream = source
    image, mask = _image_columns(stream, _name(source))
    good = _good_labels(stream)
    for column in filter(None, (image, mask)):
        stream = stream.cast_column(column, datasets.Image(decode=False))
    for i, row in enumerate(stream):
        where = f"{_name(source)}/{split}[{i}]"
        defect = GOOD if good is None else _defect(stream, good, row["label"], where)
        has_mask = mask is not None and defect != GOOD and row[mask] is not None
        # Here and not on demand: what a stream gives the address of may be gone later.
        yield _row_sample(
            split, i, where, defect, _fetched(row[image], where), _fetched(row[mask], where) if has_mask else None
        )


def notes(source: Source) -> list[str]:
    """How labels are read, and what is left out."""
    splits = _load(source)
    lines = []
    if any(_is_numbered((split.features or {}).get("label")) for split in splits.values()):
        lines.append(f"numbers in column label: 0 is taken for good, 1 for defective ({NUMBERED_DEFECT})")
    with suppress(DataError):  # reading the training images says so
        if "train" in splits and _good_labels(splits["train"]) is None:
            lines.append("no column label that tells good from defective: all images of split train are taken for good ones")
        elif "train" in splits and not _is_stream(splits["train"]):
            left_out = sum(
                sample.is_defective
                for split in ("train", "validation")
                if split in splits
                for sample in _split_samples(splits, split, source)
            )
            if left_out:
                lines.append(f"{left_out} defective images of the training and validation splits are left out")
    return lines


def _load(source: Source) -> Mapping:
    """Splits by name."""
    import datasets

    if isinstance(source, Path):
        source = _call(source, partial(datasets.load_from_disk, str(source)))
    elif isinstance(source, str):
        source = _call(source, partial(datasets.load_dataset, source))
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        raise DataError(f"{type(source).__name__}: neither a path nor a dataset")
    return {str(source.split or "train").partition("[")[0]: source}


def _call(source: Source, load: Callable):
    try:
        return load()
    except Exception as error:
        raise DataError(f"{source}: neither a folder nor a loadable dataset ({error})") from error


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else type(source).__name__


def _is_stream(dataset) -> bool:
    import datasets

    return isinstance(dataset, datasets.IterableDataset)


def _split_samples(splits: Mapping, split: str, source: Source) -> list[Sample]:
    import datasets

    dataset = splits[split]
    if _is_stream(dataset):
        return list(stream_samples(dataset, split))
    image, mask = _image_columns(dataset, _name(source))
    good = _good_labels(dataset)
    labels = [None] * len(dataset) if good is None else dataset.with_format(None)["label"]
    columns = list(filter(None, (image, mask)))
    rows = dataset.with_format(None).select_columns(columns)
    for column in columns:
        rows = rows.cast_column(column, datasets.Image(decode=False))
    samples = []
    for i, label in enumerate(labels):
        where = f"{_name(source)}/{split}[{i}]"
        defect = GOOD if good is None else _defect(dataset, good, label, where)
        has_mask = mask is not None and defect != GOOD and rows[i][mask] is not None
        samples.append(
            _row_sample(
                split,
                i,
                where,
                defect,
                partial(_cell, rows, i, image, where),
                partial(_cell, rows, i, mask, where) if has_mask else None,
            )
        )
    return samples


def _row_sample(split: str, index: int, where: str, defect: str, image: Encoded, mask: Encoded | None) -> Sample:
    """Sample named by split and row, which stay when the dataset is moved; errors tell its place as well."""
    truth = Mask(f"mask of {where}", partial(_read_mask, mask, f"mask of {where}")) if mask else None
    return Sample(f"{split}[{index}]", partial(_read_image, image, where), defect, truth, held_out=split == "validation")


def _image_columns(dataset, name: str) -> tuple[str, str | None]:
    """Names of the image column and of the mask column."""
    import datasets

    if dataset.features is None:
        raise DataError(f"{name}: the types of its columns are unknown; give its `features`")
    columns = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    masks = [column for column in columns if column.lower() in MASK_NAMES]
    images = [column for column in columns if column not in masks]
    if not images:
        raise DataError(f"{name}: no image column among {', '.join(dataset.features)}")
    if len(images) > 1 and "image" not in images:
        raise DataError(f"{name}: several image columns, {', '.join(images)}; rename the one to use to image")
    return "image" if "image" in images else images[0], masks[0] if masks else None


def _good_labels(dataset) -> set | None:
    """Values of the column `label` that mean good, or None if the dataset doesn't tell good from defective.

    Raises:
        DataError: if it has several classes, and none of their names means good.
    """
    import datasets

    feature = (dataset.features or {}).get("label")
    if isinstance(feature, datasets.ClassLabel):
        good = {i for i, name in enumerate(feature.names) if name.lower() in GOOD_NAMES}
        if len(feature.names) > 1 and not good:
            raise DataError(
                f"column label: none of its classes {', '.join(feature.names)} is named good, ok or normal; rename the one "
                "that means good, or remove the column if all images are good"
            )
        return good or None
    if getattr(feature, "dtype", None) == "string":
        return GOOD_NAMES
    return {0} if _is_numbered(feature) else None


def _is_numbered(feature) -> bool:
    """Whether a column holds numbers without names, or booleans."""
    import datasets

    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("bool", "int", "uint", "float"))


def _defect(dataset, good: set, label, where: str) -> str:
    import datasets

    feature = dataset.features["label"]
    if isinstance(label, str) and not isinstance(feature, datasets.ClassLabel):
        return defect_of(label)
    if label in good:
        return GOOD
    if _is_numbered(feature):
        if label != 1:
            raise DataError(
                f"{where}: label {label} is no name, and neither 0 for good nor 1 for defective; cast the column to a "
                "datasets.ClassLabel whose names tell, one of them good, ok or normal, or remove it if all images are good"
            )
        return NUMBERED_DEFECT
    return feature.int2str(label) if isinstance(feature, datasets.ClassLabel) and label is not None else str(label)


def _cell(rows, index: int, column: str, where: str) -> bytes:
    return _bytes_of(rows[index][column], where)


def _fetched(value: dict | None, where: str) -> Encoded:
    """The bytes of an undecoded image at once, or the error of not getting them when it is asked for them."""
    try:
        content = _bytes_of(value, where)
    except ImageError as error:
        return partial(_raise, error)
    return partial(bytes, content)


def _raise(error: ImageError) -> bytes:
    raise error


def _bytes_of(value: dict | None, where: str) -> bytes:
    """Bytes of an undecoded image, of which some datasets give just the address."""
    import fsspec

    if value is None or (value["bytes"] is None and value["path"] is None):
        raise ImageError(f"{where}: has no image; remove the row")
    if value["bytes"] is not None:
        return value["bytes"]
    with failures_named(f"{where}, {value['path']}"), fsspec.open(value["path"], "rb") as file:
        return file.read()


def _read_image(encoded: Encoded, where: str) -> Image.Image:
    return read_image(io.BytesIO(encoded()), where)


def _read_mask(encoded: Encoded, where: str) -> np.ndarray:
    return read_mask(io.BytesIO(encoded()), where)


LAYOUT = Layout(
    "datasets",
    "a folder written by datasets.save_to_disk, or the name owner/name of a dataset on the Hub",
    recognize,
    training_samples,
    test_samples,
    notes,
)
