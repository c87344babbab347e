"""KolektorSDD (Tabernik et al., JIM 2020): images of electrical commutators, every one with a label image.

```
kos01/Part0.jpg
kos01/Part0_label.bmp                       black for a good image
```

The dataset is meant for supervised learning and has no split by good and defective images. As in anomalib, 80 % of the good
images are drawn for training with a fixed seed; the others and all defective ones are for testing.
"""

from pathlib import Path

from .files import draw_training, file_sample, image_files, is_marked
from .layout import Layout
from .sample import DataError, Sample

TRAINING_SHARE = 0.8
LABEL = "_label"


def recognize(folder: Path) -> bool:
    return any(folder.glob(f"*/*{LABEL}.bmp"))


def training_samples(folder: Path) -> list[Sample]:
    training, _, _ = _split(folder)
    return [file_sample(path, folder) for path in training]


def test_samples(folder: Path) -> list[Sample]:
    _, good, labels = _split(folder)
    defective = [file_sample(path, folder, "defect", [label]) for path, label in labels.items()]
    return [file_sample(path, folder) for path in good] + defective


def _split(folder: Path) -> tuple[list[Path], list[Path], dict[Path, Path]]:
    """Good images to train on, good images to test with, and defective images with their labels."""
    labels = {path: _label_of(path) for path in image_files(folder) if not path.stem.endswith(LABEL)}
    defective = {path: label for path, label in labels.items() if is_marked(label)}
    good = [path for path in labels if path not in defective]
    training = draw_training(good, TRAINING_SHARE)
    return sorted(training), [path for path in good if path not in training], defective


def _label_of(image: Path) -> Path:
    label = image.with_name(f"{image.stem}{LABEL}.bmp")
    if not label.is_file():
        raise DataError(f"{image}: no label {label.name} beside it, which says whether it is good; add it or remove the image")
    return label


def notes(folder: Path) -> list[str]:
    return [
        f"no official split: {TRAINING_SHARE:.0%} of the good images were drawn for training with a fixed seed, as in anomalib"
    ]


LAYOUT = Layout(
    "KolektorSDD",
    "<item>/<name>.jpg beside <item>/<name>_label.bmp",
    recognize,
    training_samples,
    test_samples,
    notes,
)
