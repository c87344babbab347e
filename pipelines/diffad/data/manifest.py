"""A CSV file that lists the images, for data that lies in no known layout.

```
image,split,label,mask
line1/0001.png,train,good,
line1/0907.png,validation,good,
line2/0002.png,test,good,
line2/0417.png,test,scratch,masks/0417.png
```

Columns, in any order and case of letters, separated by commas, semicolons or tabs; others are ignored:
    image: path of the image, relative to the CSV file.
    split: train, validation (held out for validation and calibration; without any, images are chosen) or test.
    label: `good`, `ok`, `normal` or 0, or the name of the defect type or 1; train and validation images must be good.
    mask: path of the ground truth of a defective test image, relative to the CSV file, or empty. The column may be missing.
    group: name of what several images show, such as one part; they are held out together. The column may be missing.
"""

import os
from functools import partial
from pathlib import Path

from ..imaging.decoding import pixel_count
from ..imaging.reading import read_image
from .csv_table import Row, read_table, shown
from .ground_truth import file_mask, refuse_shared_masks
from .labels import defect_of
from .layout import Layout
from .sample import GOOD, DataError, Sample

COLUMNS = ("image", "split", "label")
SPLITS = ("train", "validation", "test")


def recognize(path: Path) -> bool:
    """Whether a path is a CSV file."""
    return path.suffix.lower() == ".csv" and path.is_file()


def training_samples(path: Path) -> list[Sample]:
    """Images of the splits train and validation."""
    samples = [sample for split, sample in _rows(path) if split != "test"]
    if not samples:
        raise DataError(f"{path}: no rows with split train")
    return samples


def test_samples(path: Path) -> list[Sample]:
    """Images of the split test with their masks."""
    return [sample for split, sample in _rows(path) if split == "test"]


def _rows(path: Path) -> list[tuple[str, Sample]]:
    """Every row's split and sample; nothing is decoded, but all files must exist.

    Raises:
        DataError: naming the line that is wrong.
    """
    rows = [_checked(path, line, row) for line, row in read_table(path, COLUMNS)]
    lines: dict[Path, str] = {}
    for where, row in rows:
        image = (path.parent / row["image"]).resolve()
        if image in lines:
            raise DataError(f"{where}: {shown(row['image'])} is listed twice, first in {lines[image]}; remove a row")
        lines[image] = where.rpartition(", ")[2]
    masks = [[path.parent / row["mask"]] if row.get("mask") and row["label"] != GOOD else [] for _, row in rows]
    refuse_shared_masks((row["image"], [file.resolve() for file in files]) for (_, row), files in zip(rows, masks))
    return [
        (
            row["split"],
            Sample(
                row["image"],
                partial(read_image, path.parent / row["image"]),
                row["label"],
                file_mask(files),
                held_out=row["split"] == "validation",
                group=row.get("group") or None,
                pixels=partial(pixel_count, path.parent / row["image"]),
            ),
        )
        for (_, row), files in zip(rows, masks)
    ]


def _checked(manifest: Path, line: int, row: Row) -> tuple[str, Row]:
    """Where a row stands, and the row with its split in lower case, its label as a defect type and its files as they are."""
    where = f"{manifest}, line {line}"
    split, defect = row["split"].casefold(), defect_of(row["label"])
    if split not in SPLITS:
        raise DataError(f"{where}: split {shown(row['split'])!r}; it must be one of {', '.join(SPLITS)}")
    if not defect:
        raise DataError(f"{where}: no label; write {GOOD} or the name of the defect")
    if split != "test" and defect != GOOD:
        raise DataError(
            f"{where}: {shown(row['image'])} is labelled {shown(row['label'])!r} in split {split}, where only {GOOD} images "
            "belong; give defective images the split test"
        )
    files = {column: _spelling(manifest, where, row[column]) for column in ("image", "mask") if row.get(column)}
    if "image" not in files:
        raise DataError(f"{where}: no image; name one or remove the row")
    return where, {**row, **files, "split": split, "label": defect}


def _spelling(manifest: Path, where: str, text: str) -> str:
    """A path as it leads to a file here: Windows separates folders by backslashes, which may be part of a name elsewhere."""
    for spelling in (text.replace("\\", "/"), text):
        if os.path.isfile(manifest.parent / spelling):
            return spelling
    raise DataError(f"{where}: {manifest.parent / shown(text)}: no such file; paths are relative to the manifest")


LAYOUT = Layout(
    "CSV manifest",
    "a .csv file with the columns image, split, label and mask",
    recognize,
    training_samples,
    test_samples,
)
