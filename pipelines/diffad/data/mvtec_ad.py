"""MVTec AD (Bergmann et al., CVPR 2019), the layout most others derive from; one category is one dataset.

```
train/good/000.png
validation/good/000.png                     optional: held out for validation and calibration
test/good/000.png
test/<defect>/000.png
ground_truth/<defect>/000_mask.png          optional: without, there are image metrics only
```
"""

from pathlib import Path

from .files import defect_folder_samples, good_samples, mask_file
from .layout import Layout
from .sample import GOOD, Sample


def recognize(folder: Path) -> bool:
    if has_mask_folders(folder):
        return False
    return (folder / "test" / GOOD).is_dir() or ((folder / "train" / GOOD).is_dir() and not (folder / "test_public").is_dir())


def has_mask_folders(folder: Path) -> bool:
    """Whether masks lie in a folder per image, as in MVTec LOCO."""
    return any(path.is_dir() for path in (folder / "ground_truth").glob("*/[!.]*"))


def training_samples(folder: Path) -> list[Sample]:
    samples = good_samples(folder / "train" / GOOD, folder)
    validation = folder / "validation" / GOOD
    return samples + (good_samples(validation, folder, held_out=True) if validation.is_dir() else [])


def test_samples(folder: Path) -> list[Sample]:
    return defect_folder_samples(folder, folder / "test", folder / "ground_truth", mask_file)


LAYOUT = Layout(
    "MVTec AD",
    "train/good, test/good, test/<defect> and ground_truth/<defect>/<name>_mask.png",
    recognize,
    training_samples,
    test_samples,
)
