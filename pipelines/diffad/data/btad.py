"""BTAD, beanTech Anomaly Detection (Mishra et al., ISIE 2021): three products, one folder each.

```
train/ok/0000.bmp                           bmp or png, differing between products
test/ok/0000.bmp
test/ko/0000.bmp
ground_truth/ko/0000.png                    png, or bmp for the third product
```
"""

from pathlib import Path

from .files import defect_folder_samples, good_samples, mask_file
from .layout import Layout
from .sample import Sample


def recognize(folder: Path) -> bool:
    return any((folder / split / "ok").is_dir() for split in ("train", "test"))


def training_samples(folder: Path) -> list[Sample]:
    return good_samples(folder / "train" / "ok", folder)


def test_samples(folder: Path) -> list[Sample]:
    return defect_folder_samples(folder, folder / "test", folder / "ground_truth", mask_file, good="ok")


LAYOUT = Layout("BTAD", "train/ok, test/ok, test/ko and ground_truth/ko", recognize, training_samples, test_samples)
