"""KolektorSDD (Tabernik et al., JIM 2020): images of electrical commutators, every one with a label image.

```
kos01/Part0.jpg
kos01/Part0_label.bmp                       black for a good image
```

The dataset is meant for supervised learning and has no split by good and defective images. As in anomalib, 80 % of the good
images are drawn for training with a fixed seed; the others and all defective ones are for testing. Images of one item are a
group: they are held out together or not at all.
"""

from pathlib import Path

from .files import draw_training, file_sample
from .ground_truth import is_marked, refuse_shared_masks
from .layout import Layout
from .sample import DataError, Sample
from .walk import image_files, is_image_name, subfolders

TRAINING_SHARE = 0.8
LABEL = "_label"


def recognize(folder: Path) -> bool:
    """Whether a folder has this layout."""
    if not folder.is_dir():
        return False
    return any(_is_label(path) for item in subfolders(folder) for path in item.iterdir())


def training_samples(folder: Path) -> list[Sample]:
    """Good images drawn for training."""
    training, _, _ = _split(folder)
    return [file_sample(path, folder, group=path.relative_to(folder).parts[0]) for path in training]


def test_samples(folder: Path) -> list[Sample]:
    """The other good images, and the defective ones with their labels."""
    _, good, labels = _split(folder)
    defective = [file_sample(path, folder, "defect", [label]) for path, label in labels.items()]
    return [file_sample(path, folder) for path in good] + defective


def notes(folder: Path) -> list[str]:
    """How the images are split."""
    return [
        f"no official split: {TRAINING_SHARE:.0%} of the good images were drawn for training with a fixed seed, as in anomalib"
    ]


def _split(folder: Path) -> tuple[list[Path], list[Path], dict[Path, Path]]:
    """Good images to train on, good images to test with, and defective images with their labels."""
    images = image_files(folder)
    labels_by_stem = {path.with_suffix(""): path for path in images if _is_label(path)}
    labels = {path: _label_of(path, labels_by_stem) for path in images if not _is_label(path)}
    refuse_shared_masks((path.relative_to(folder).as_posix(), [label]) for path, label in labels.items())
    defective = {path: label for path, label in labels.items() if is_marked(label)}
    good = [path for path in labels if path not in defective]
    training = draw_training(good, TRAINING_SHARE)
    return sorted(training), [path for path in good if path not in training], defective


def _is_label(path: Path) -> bool:
    return path.stem.endswith(LABEL) and is_image_name(path.name)


def _label_of(image: Path, labels_by_stem: dict[Path, Path]) -> Path:
    stem = image.with_name(image.stem + LABEL)
    if stem not in labels_by_stem:
        raise DataError(
            f"{image}: no label {stem.name}.bmp beside it, which says whether it is good; add it or remove the image"
        )
    return labels_by_stem[stem]


LAYOUT = Layout(
    "KolektorSDD",
    "<item>/<name>.jpg beside <item>/<name>_label.bmp",
    recognize,
    training_samples,
    test_samples,
    notes,
)
