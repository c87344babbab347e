"""BTAD, beanTech Anomaly Detection (Mishra et al., ISIE 2021): three products, one folder each.

```
train/ok/0000.bmp                           bmp or png, differing between products
test/ok/0000.bmp
test/ko/0000.bmp
ground_truth/ko/0000.png                    png, or bmp for the third product
```
"""

from pathlib import Path

from .files import defect_folder_samples, good_samples
from .layout import Layout
from .mvtec_ad import named_masks
from .sample import Sample
from .walk import child


def recognize(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return any(child(folder, split, "ok").is_dir() for split in ("train", "test"))


def training_samples(folder: Path) -> list[Sample]:
    """Images of train/ok."""
    return good_samples(child(folder, "train", "ok"), folder)


def test_samples(folder: Path) -> list[Sample]:
    """Images of test with their masks."""
    return defect_folder_samples(folder, child(folder, "test"), child(folder, "ground_truth"), named_masks, good="ok")


LAYOUT = Layout("BTAD", "train/ok, test/ok, test/ko and ground_truth/ko", recognize, training_samples, test_samples)
