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

from pathlib import Path, PurePosixPath

from .csv_table import Row, read_table
from .files import draw_training, file_sample
from .ground_truth import MaskFolder, refuse_shared_masks
from .layout import Layout
from .sample import DataError, Sample
from .walk import child, image_files

TRAINING_SHARE = 0.9
IMAGES, MASKS = ("Data", "Images"), ("Data", "Masks")


def recognize(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return child(folder, *IMAGES, "Normal").is_dir()


def training_samples(folder: Path) -> list[Sample]:
    """Good images of the split's training part."""
    return [file_sample(path, folder) for path in sorted(_split(folder)[0])]


def test_samples(folder: Path) -> list[Sample]:
    """Good images of the split's test part, and all anomalous ones with their masks."""
    kinds = _defect_kinds(folder)
    anomalous = child(folder, *IMAGES, "Anomaly")
    find = MaskFolder(anomalous, child(folder, *MASKS, "Anomaly")).find
    masks = {path: find(path) for path in (image_files(anomalous) if anomalous.is_dir() else [])}
    refuse_shared_masks((path.relative_to(folder).as_posix(), files) for path, files in masks.items())
    good = [file_sample(path, folder) for path in sorted(_split(folder)[1])]
    return good + [file_sample(path, folder, kinds.get(path, "anomaly"), files) for path, files in masks.items()]


def notes(folder: Path) -> list[str]:
    """Which split is used."""
    if _official_rows(folder):
        return [f"split as in {_split_table(folder)}"]
    return [
        f"no rows for it in {_split_table(folder)}: {TRAINING_SHARE:.0%} of the good images were drawn for training "
        "with a fixed seed, which is not the official split"
    ]


def _split(folder: Path) -> tuple[set[Path], set[Path]]:
    """Good images to train on and to test with."""
    normal = set(image_files(child(folder, *IMAGES, "Normal")))
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


def _official_rows(folder: Path) -> list[Row]:
    """Rows of this category's good images in the table of splits, if there is one."""
    table = _split_table(folder)
    normal = PurePosixPath(folder.name, *IMAGES, "Normal")
    rows = [row for _, row in read_table(table, ("image", "split"))] if table.is_file() else []
    return [row for row in rows if PurePosixPath(row["image"]).is_relative_to(normal)]


def _defect_kinds(folder: Path) -> dict[Path, str]:
    table = folder / "image_anno.csv"
    rows = [row for _, row in read_table(table, ("image", "label"))] if table.is_file() else []
    return {folder.parent / row["image"]: row["label"] for row in rows}


LAYOUT = Layout(
    "VisA",
    "Data/Images/Normal, Data/Images/Anomaly and Data/Masks/Anomaly",
    recognize,
    training_samples,
    test_samples,
    notes,
)
