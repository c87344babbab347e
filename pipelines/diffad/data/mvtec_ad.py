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

from .files import FindMasks, defect_folder_samples, good_samples
from .ground_truth import MaskFolder
from .layout import Layout
from .sample import GOOD, Sample
from .walk import child, image_files, subfolders


def recognize(folder: Path) -> bool:
    """Whether a folder has this layout."""
    if has_mask_folders(folder):
        return False
    has_training = child(folder, "train", GOOD).is_dir() and not child(folder, "test_public").is_dir()
    return has_training or child(folder, "test", GOOD).is_dir()


def has_mask_folders(folder: Path) -> bool:
    """Whether masks lie in a folder per image, named like it, as in MVTec LOCO."""
    truth = child(folder, "ground_truth")
    for masks in subfolders(truth) if truth.is_dir() else []:
        names = {path.name for path in subfolders(masks)}
        images = child(folder, "test", masks.name)
        if names and (not images.is_dir() or any(path.stem in names for path in image_files(images))):
            return True
    return False


def training_samples(folder: Path) -> list[Sample]:
    """Images of train/good and validation/good."""
    samples = good_samples(child(folder, "train", GOOD), folder)
    validation = child(folder, "validation", GOOD)
    return samples + (good_samples(validation, folder, held_out=True) if validation.is_dir() else [])


def test_samples(folder: Path) -> list[Sample]:
    """Images of test with their masks."""
    return defect_folder_samples(folder, child(folder, "test"), child(folder, "ground_truth"), named_masks)


def named_masks(images: Path, masks: Path) -> FindMasks:
    """Finds masks that are named like their images."""
    return MaskFolder(images, masks).find


LAYOUT = Layout(
    "MVTec AD",
    "train/good, test/good, test/<defect> and ground_truth/<defect>/<name>_mask.png",
    recognize,
    training_samples,
    test_samples,
)
