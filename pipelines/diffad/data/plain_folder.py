"""A folder with nothing but good images, searched recursively.

Whatever hints at defects, masks or a split is refused, since everything here would be trained on as good.
"""

from pathlib import Path

from .files import good_samples, image_files, subfolders
from .layout import Layout
from .sample import Sample

GOOD_NAMES = frozenset({"good", "ok", "normal"})
SPLIT_NAMES = frozenset({"train", "validation", "test", "test_public", "test_private", "test_private_mixed"})
DEFECT_NAMES = frozenset(
    {"bad", "ko", "nok", "ng", "defect", "defects", "defective", "anomaly", "anomalies", "anomalous", "abnormal", "rejects"}
    | {"ground_truth", "mask", "masks", "label", "labels"}
)
MASK_ENDINGS = ("_mask", "_label", "_gt")


def recognize(folder: Path) -> bool:
    return folder.is_dir() and objection(folder) is None


def objection(folder: Path) -> str | None:
    """Why a folder can't be taken for one of good images only, or None."""
    if folder.resolve().name.lower() in DEFECT_NAMES:
        return "by its name it holds defects or masks"
    queue = [folder]
    while queue:
        current = queue.pop()
        inner = subfolders(current)
        for path in inner:
            if path.name.lower() in SPLIT_NAMES | DEFECT_NAMES:
                return f"it holds {path.relative_to(folder)}, so not all of its images are good ones to train on"
            if path.name.lower() in GOOD_NAMES and len(inner) > 1:
                other = next(sibling for sibling in inner if sibling != path)
                return f"it holds {other.relative_to(folder)} beside {path.relative_to(folder)}: are those images good, too?"
        queue.extend(inner)
    images = image_files(folder)
    stems = {path.with_suffix("") for path in images}
    for path in images:
        for ending in MASK_ENDINGS:
            if path.stem.lower().endswith(ending) and path.with_name(path.stem[: -len(ending)]) in stems:
                return f"{path.relative_to(folder)} looks like a mask beside its image"
    return None


def training_samples(folder: Path) -> list[Sample]:
    return good_samples(folder, folder)


def test_samples(folder: Path) -> list[Sample]:
    return []


LAYOUT = Layout(
    "folder of good images",
    "images only, in subfolders of any depth, nothing in it named like a split, a defect or a mask",
    recognize,
    training_samples,
    test_samples,
)
