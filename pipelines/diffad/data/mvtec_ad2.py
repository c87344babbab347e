"""MVTec AD 2 (Heckler-Kram et al., 2025): a public test set, and private ones without labels.

```
train/good/000_regular.png
validation/good/000_regular.png             held out for validation and calibration
test_public/good/000_regular.png
test_public/bad/000_regular.png
test_public/ground_truth/bad/000_regular_mask.png
test_private/, test_private_mixed/          not used: only the benchmark's server knows their labels
```
"""

from pathlib import Path

from .files import defect_folder_samples
from .layout import Layout
from .mvtec_ad import named_masks, training_samples
from .sample import Sample
from .walk import child, image_files


def recognize(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return child(folder, "test_public").is_dir()


def test_samples(folder: Path) -> list[Sample]:
    """Images of test_public with their masks."""
    test = child(folder, "test_public")
    return defect_folder_samples(folder, test, child(test, "ground_truth"), named_masks)


def notes(folder: Path) -> list[str]:
    """How many images are not used."""
    private = {
        name: len(image_files(child(folder, name)))
        for name in ("test_private", "test_private_mixed")
        if child(folder, name).is_dir()
    }
    return [f"{name}: {count} images without published labels are not used" for name, count in private.items() if count]


LAYOUT = Layout(
    "MVTec AD 2",
    "train/good, validation/good, test_public/good, test_public/bad and test_public/ground_truth/bad",
    recognize,
    training_samples,
    test_samples,
    notes,
)
