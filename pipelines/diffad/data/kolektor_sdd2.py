"""KolektorSDD2 (Bozic et al., Computers in Industry 2021): surfaces, every image with a ground-truth image.

```
train/10000.png, train/10000_GT.png         black for a good image
test/20000.png, test/20000_GT.png
```

Its training split holds defective images, too, for supervised learning: they are left out. The archive has a stray pair
"10301 (copy).png" and "10301_GT (copy).png", which is ignored.
"""

from pathlib import Path

from .files import file_sample, image_files, is_marked
from .layout import Layout
from .sample import DataError, Sample

TRUTH = "_GT"


def recognize(folder: Path) -> bool:
    return any(any(folder.glob(f"{split}/*{TRUTH}.png")) for split in ("train", "test"))


def training_samples(folder: Path) -> list[Sample]:
    return [sample for sample in _samples(folder, "train") if not sample.is_defective]


def test_samples(folder: Path) -> list[Sample]:
    return _samples(folder, "test")


def _samples(folder: Path, split: str) -> list[Sample]:
    samples = []
    for path in image_files(folder / split):
        if path.stem.endswith((TRUTH, " (copy)")):
            continue
        truth = path.with_name(f"{path.stem}{TRUTH}.png")
        if not truth.is_file():
            raise DataError(f"{path}: no {truth.name} beside it, which says whether it is good; add it or remove the image")
        samples.append(file_sample(path, folder, "defect", [truth]) if is_marked(truth) else file_sample(path, folder))
    return samples


def notes(folder: Path) -> list[str]:
    defective = sum(sample.is_defective for sample in _samples(folder, "train"))
    return [f"{defective} defective images of the training split are left out"] if defective else []


LAYOUT = Layout(
    "KolektorSDD2",
    "train/<name>.png beside train/<name>_GT.png, and test likewise",
    recognize,
    training_samples,
    test_samples,
    notes,
)
