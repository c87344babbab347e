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

from .files import FindMasks, defect_folder_samples
from .layout import Layout
from .mvtec_ad import has_mask_folders, training_samples
from .sample import GOOD, Sample
from .walk import child, image_files


def recognize(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return has_mask_folders(folder) and any(child(folder, split, GOOD).is_dir() for split in ("train", "test"))


def test_samples(folder: Path) -> list[Sample]:
    """Images of test with all of their masks."""
    return defect_folder_samples(folder, child(folder, "test"), child(folder, "ground_truth"), _masks_in_own_folders)


def _masks_in_own_folders(images: Path, masks: Path) -> FindMasks:
    def find(image: Path) -> list[Path]:
        below = child(masks, *image.parent.relative_to(images).parts, image.stem)
        folder = below if below.is_dir() else child(masks, image.stem)
        return image_files(folder) if folder.is_dir() else []

    return find


def notes(folder: Path) -> list[str]:
    """How masks are read."""
    return ["the masks of an image are united; saturation areas (defects_config.json, for sPRO) are not used"]


LAYOUT = Layout(
    "MVTec LOCO AD",
    "train/good, validation/good, test/<defect> and ground_truth/<defect>/<name>/000.png",
    recognize,
    training_samples,
    test_samples,
    notes,
)
