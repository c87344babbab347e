"""A CSV file that lists the images, for data that lies in no known layout.

```
image,split,label,mask
line1/0001.png,train,good,
line1/0907.png,validation,good,
line2/0002.png,test,good,
line2/0417.png,test,scratch,masks/0417.png
```

Columns, separated by commas or semicolons; others are ignored:
    image: path of the image, relative to the CSV file.
    split: train, validation (held out for validation and calibration; without any, images are drawn) or test.
    label: `good`, or the name of the defect type; train and validation images must be good.
    mask: path of the ground truth of a defective test image, relative to the CSV file, or empty. The column may be missing.
"""

import csv
from functools import partial
from pathlib import Path

from ..imaging.reading import read_image
from .files import file_mask
from .layout import Layout
from .sample import GOOD, DataError, Sample

COLUMNS = ("image", "split", "label")
SPLITS = ("train", "validation", "test")


def recognize(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and path.is_file()


def training_samples(path: Path) -> list[Sample]:
    samples = [sample for split, sample in _rows(path) if split != "test"]
    if not samples:
        raise DataError(f"{path}: no rows with split train")
    return samples


def test_samples(path: Path) -> list[Sample]:
    return [sample for split, sample in _rows(path) if split == "test"]


def _rows(path: Path) -> list[tuple[str, Sample]]:
    """Every row's split and sample; nothing is decoded, but all files must exist.

    Raises:
        DataError: naming the line that is wrong.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=";" if ";" in header else ",")
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            raise DataError(f"{path}: no column {', '.join(missing)}; a manifest has the columns image, split, label and mask")
        rows = [(reader.line_num, {key: (value or "").strip() for key, value in row.items() if key}) for row in reader]
    seen = set()
    return [(row["split"], _sample(path, line, row, seen)) for line, row in rows]


def _sample(manifest: Path, line: int, row: dict[str, str], seen: set[Path]) -> Sample:
    where = f"{manifest}, line {line}"
    image = manifest.parent / row["image"]
    if row["split"] not in SPLITS:
        raise DataError(f"{where}: split {row['split']!r}; it must be one of {', '.join(SPLITS)}")
    if not row["label"]:
        raise DataError(f"{where}: no label; write {GOOD} or the name of the defect")
    if row["split"] != "test" and row["label"] != GOOD:
        raise DataError(
            f"{where}: {row['image']} is labelled {row['label']!r} in split {row['split']}, where only {GOOD} images belong; "
            "give defective images the split test"
        )
    for path in [image] + ([manifest.parent / row["mask"]] if row.get("mask") else []):
        if not path.is_file():
            raise DataError(f"{where}: {path}: no such file; paths are relative to the manifest")
    if image.resolve() in seen:
        raise DataError(f"{where}: {row['image']} is listed twice")
    seen.add(image.resolve())
    masks = [manifest.parent / row["mask"]] if row.get("mask") and row["label"] != GOOD else []
    return Sample(
        row["image"], partial(read_image, image), row["label"], file_mask(masks), held_out=row["split"] == "validation"
    )


LAYOUT = Layout(
    "CSV manifest",
    "a .csv file with the columns image, split, label and mask",
    recognize,
    training_samples,
    test_samples,
)
