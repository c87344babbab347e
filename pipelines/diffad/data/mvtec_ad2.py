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

from .files import defect_folder_samples, image_files, mask_file
from .layout import Layout
from .mvtec_ad import training_samples
from .sample import Sample


def recognize(folder: Path) -> bool:
    return (folder / "test_public").is_dir()


def test_samples(folder: Path) -> list[Sample]:
    test = folder / "test_public"
    return defect_folder_samples(folder, test, test / "ground_truth", mask_file)


def notes(folder: Path) -> list[str]:
    private = {name: len(image_files(folder / name)) for name in ("test_private", "test_private_mixed")}
    return [f"{name}: {count} images without published labels are not used" for name, count in private.items() if count]


LAYOUT = Layout(
    "MVTec AD 2",
    "train/good, validation/good, test_public/good, test_public/bad and test_public/ground_truth/bad",
    recognize,
    training_samples,
    test_samples,
    notes,
)
