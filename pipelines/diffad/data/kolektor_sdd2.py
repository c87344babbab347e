"""KolektorSDD2 (Bozic et al., Computers in Industry 2021): surfaces, every image with a ground-truth image.

```
train/10000.png, train/10000_GT.png         black for a good image
test/20000.png, test/20000_GT.png
```

Its training split holds defective images, too, for supervised learning: they are left out. The archive has a stray pair
"10301 (copy).png" and "10301_GT (copy).png", which is ignored.
"""

from pathlib import Path

from .files import file_sample
from .ground_truth import is_marked, refuse_shared_masks
from .layout import Layout
from .sample import DataError, Sample
from .walk import child, image_files, is_image_name

TRUTH = "_GT"


def recognize(folder: Path) -> bool:
    """Whether a folder has this layout."""
    splits = [child(folder, split) for split in ("train", "test")]
    return any(
        path.stem.endswith(TRUTH) and is_image_name(path.name) for split in splits if split.is_dir() for path in split.iterdir()
    )


def training_samples(folder: Path) -> list[Sample]:
    """Good images of train."""
    return [sample for sample in _samples(folder, "train") if not sample.is_defective]


def test_samples(folder: Path) -> list[Sample]:
    """Images of test with their ground truth."""
    return _samples(folder, "test")


def notes(folder: Path) -> list[str]:
    """How many training images are left out."""
    defective = sum(sample.is_defective for sample in _samples(folder, "train"))
    return [f"{defective} defective images of the training split are left out"] if defective else []


def _samples(folder: Path, split: str) -> list[Sample]:
    files = image_files(child(folder, split)) if child(folder, split).is_dir() else []
    truths = {path.with_suffix(""): path for path in files if path.stem.endswith(TRUTH)}
    pairs = []
    for path in files:
        if path.stem.endswith((TRUTH, " (copy)")):
            continue
        truth = path.with_name(path.stem + TRUTH)
        if truth not in truths:
            raise DataError(f"{path}: no {truth.name}.png beside it, which says whether it is good; add it or remove the image")
        pairs.append((path, truths[truth]))
    refuse_shared_masks((path.relative_to(folder).as_posix(), [truth]) for path, truth in pairs)
    return [
        file_sample(path, folder, "defect", [truth]) if is_marked(truth) else file_sample(path, folder) for path, truth in pairs
    ]


LAYOUT = Layout(
    "KolektorSDD2",
    "train/<name>.png beside train/<name>_GT.png, and test likewise",
    recognize,
    training_samples,
    test_samples,
    notes,
)
