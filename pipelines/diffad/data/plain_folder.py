"""A folder with nothing but good images, searched recursively.

Whatever hints at defects, masks or a split is refused, since everything here would be trained on as good. That images lie in
several folders is such a hint, too, unless the user says that they are all good.
"""

from collections import Counter
from pathlib import Path

from .files import good_samples
from .layout import Layout
from .sample import Sample
from .walk import image_files

SPLIT_NAMES = frozenset({"train", "validation", "test", "test_public", "test_private", "test_private_mixed"})
DEFECT_NAMES = frozenset(
    {"bad", "ko", "nok", "ng", "fail", "defect", "defects", "defective", "rejects", "scrap"}
    | {"anomaly", "anomalies", "anomalous", "anoms", "abnormal", "nio", "schlecht"}
    | {"ground_truth", "mask", "masks", "label", "labels"}
)
MASK_ENDINGS = ("_mask", "_label", "_gt")
SHOWN = 8  # folders in an error


def recognize(folder: Path) -> bool:
    """Whether a folder holds images in one folder, and nothing that hints at other than good ones."""
    return folder.is_dir() and objection(folder) is None and several_folders(folder) is None


def objection(folder: Path) -> str | None:
    """Why a folder can't be taken for one of good images only, whatever its user says, or None."""
    if folder.resolve().name.lower() in DEFECT_NAMES:
        return "by its name it holds defects or masks"
    images = image_files(folder)
    stems = {path.with_suffix("") for path in images}
    for path in images:
        inner = path.relative_to(folder).parent
        for part in (*reversed(inner.parents), inner):
            if part.name.lower() in SPLIT_NAMES | DEFECT_NAMES:
                return f"it holds {part}, so not all of its images are good ones to train on"
        for ending in MASK_ENDINGS:
            if path.stem.lower().endswith(ending) and path.with_name(path.stem[: -len(ending)]) in stems:
                return f"{path.relative_to(folder)} looks like a mask beside its image"
    return None


def several_folders(folder: Path) -> str | None:
    """The folders with images, if there are several, which may be good and defective ones, or None."""
    counts = Counter(path.parent.relative_to(folder).as_posix() for path in image_files(folder))
    if len(counts) < 2:
        return None
    listed = [f"{name} ({count})" for name, count in sorted(counts.items())]
    rest = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"its images lie in several folders: {', '.join(listed[:SHOWN])}{rest}"


def training_samples(folder: Path) -> list[Sample]:
    """All images of the folder."""
    return good_samples(folder, folder)


def test_samples(folder: Path) -> list[Sample]:
    """None: nothing here is known to be defective."""
    return []


LAYOUT = Layout(
    "folder of good images",
    "images only, in one folder or, if they are said to be all good, in subfolders of any depth; nothing in it named like a "
    "split, a defect or a mask",
    recognize,
    training_samples,
    test_samples,
)
