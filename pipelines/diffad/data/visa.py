"""VisA (Zou et al., ECCV 2022) as published; one category is one dataset.

```
Data/Images/Normal/0000.JPG
Data/Images/Anomaly/000.JPG
Data/Masks/Anomaly/000.png                  levels 1, 2, ... name kinds of defects
image_anno.csv                              columns image, label, mask: the kinds of defects of every image
../split_csv/1cls.csv                       columns object, split, label, image, mask: the official split
```

Both tables name images relative to the folder that holds the categories. Without the table of splits, 90 % of the normal
images, the official share, are drawn for training. (Folders made by the authors' prepare_data.py have the MVTec AD layout.)
"""

import csv
from pathlib import Path

from .files import draw_training, file_sample, image_files, mask_file
from .layout import Layout
from .sample import DataError, Sample

TRAINING_SHARE = 0.9


def recognize(folder: Path) -> bool:
    return (folder / "Data" / "Images" / "Normal").is_dir()


def training_samples(folder: Path) -> list[Sample]:
    return [file_sample(path, folder) for path in sorted(_split(folder)[0])]


def test_samples(folder: Path) -> list[Sample]:
    kinds = _defect_kinds(folder)
    samples = [file_sample(path, folder) for path in sorted(_split(folder)[1])]
    for path in image_files(folder / "Data" / "Images" / "Anomaly"):
        masks = mask_file(path, folder / "Data" / "Masks" / "Anomaly")
        samples.append(file_sample(path, folder, kinds.get(path, "anomaly"), masks))
    return samples


def notes(folder: Path) -> list[str]:
    if _official_rows(folder):
        return [f"split as in {_split_table(folder)}"]
    return [
        f"no rows for it in {_split_table(folder)}: {TRAINING_SHARE:.0%} of the normal images were drawn for training "
        "with a fixed seed, which is not the official split"
    ]


def _split(folder: Path) -> tuple[set[Path], set[Path]]:
    """Normal images to train on and to test with."""
    normal = set(image_files(folder / "Data" / "Images" / "Normal"))
    rows = _official_rows(folder)
    if not rows:
        training = draw_training(sorted(normal), TRAINING_SHARE)
        return training, normal - training
    split = {name: {folder.parent / row["image"] for row in rows if row["split"] == name} for name in ("train", "test")}
    missing = sorted((split["train"] | split["test"]) - normal)
    if missing:
        raise DataError(f"{missing[0]}: is in {_split_table(folder)} but not among the images; restore it or remove the table")
    return split["train"], split["test"]


def _split_table(folder: Path) -> Path:
    return folder.parent / "split_csv" / "1cls.csv"


def _official_rows(folder: Path) -> list[dict]:
    """Rows of this category's normal images in the table of splits, if there is one."""
    table = _split_table(folder)
    prefix = f"{folder.name}/Data/Images/Normal/"
    return [row for row in _read_table(table) if row["image"].startswith(prefix)] if table.is_file() else []


def _defect_kinds(folder: Path) -> dict[Path, str]:
    table = folder / "image_anno.csv"
    return {folder.parent / row["image"]: row["label"] for row in _read_table(table)} if table.is_file() else {}


def _read_table(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


LAYOUT = Layout(
    "VisA",
    "Data/Images/Normal, Data/Images/Anomaly and Data/Masks/Anomaly",
    recognize,
    training_samples,
    test_samples,
    notes,
)
