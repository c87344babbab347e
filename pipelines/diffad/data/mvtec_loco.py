"""MVTec LOCO AD (Bergmann et al., IJCV 2022): logical and structural anomalies, several masks per image.

```
train/good/000.png
validation/good/000.png                     held out for validation and calibration
test/good/000.png
test/logical_anomalies/000.png              likewise structural_anomalies
ground_truth/logical_anomalies/000/000.png  one file per anomaly of the image
defects_config.json
```

A mask's level names the kind of defect, which defects_config.json gives a saturation area: the sPRO metric needs no more than
that area of it to be found. Here every non-zero level is a defect and the masks of an image are united.
"""

from pathlib import Path

from .files import defect_folder_samples, image_files
from .layout import Layout
from .mvtec_ad import has_mask_folders, training_samples
from .sample import GOOD, Sample


def recognize(folder: Path) -> bool:
    return has_mask_folders(folder) and any((folder / split / GOOD).is_dir() for split in ("train", "test"))


def test_samples(folder: Path) -> list[Sample]:
    return defect_folder_samples(folder, folder / "test", folder / "ground_truth", _masks_of)


def _masks_of(image: Path, folder: Path) -> list[Path]:
    return image_files(folder / image.stem) if (folder / image.stem).is_dir() else []


def notes(folder: Path) -> list[str]:
    return ["the masks of an image are united; saturation areas (defects_config.json, for sPRO) are not used"]


LAYOUT = Layout(
    "MVTec LOCO AD",
    "train/good, validation/good, test/<defect> and ground_truth/<defect>/<name>/000.png",
    recognize,
    training_samples,
    test_samples,
    notes,
)
