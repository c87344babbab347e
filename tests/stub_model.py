"""A model that is loaded at once: an image's score is its mean grey level plus an offset, which `offset` in its folder holds.

Images of special colours do what real models seldom do, and `seconds` in the folder holds how long it takes for an image.
"""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from diffad.imaging.image_statistics import look_of
from diffad.imaging.preprocessing import as_image_list
from diffad.runtime.calibration import StoredCalibration
from diffad.runtime.description import CalibrationScores
from diffad.runtime.detector import Detections
from diffad.scoring.categories import category_indices, names_of
from diffad.scoring.config import ScoreConfig
from diffad.scoring.reference_parts import ReferenceParts
from PIL import Image

KILLS, FAILS, HANGS = (255, 0, 0), (0, 255, 0), (0, 0, 255)  # colours of images on which the process is killed, ...
UNKNOWN = (255, 255, 0)  # of an image of a product that the model has never seen
SCORES = tuple(float(level) for level in range(40, 140))  # of the calibration images: good parts have grey levels up to 135
SIZE = (16, 12)


class StubModel:
    residual_gaussian = object()  # it can repair

    def __init__(self, folder: Path):
        self.offset, self.seconds = float((folder / "offset").read_text()), float((folder / "seconds").read_text())
        categories = (folder / "categories").read_text().split()
        self.category_names, self.digest = categories or None, f"stub {self.offset:g}"
        scores = CalibrationScores(SCORES, SCORES)
        self.references = stub_reference_parts() if (folder / "embeddings").read_text() == "True" else None
        self.calibration = StoredCalibration(
            ScoreConfig(), [scores] * max(1, len(categories)), None, lambda category: self.references
        )

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def category_indices(self, categories, count):
        return category_indices(categories, self.category_names, count)

    def __call__(self, images, batch_size=8, categories=None, false_alarm_rate=None, map_size=None, return_features=False):
        images = as_image_list(images)
        levels, unknown = [], []
        for image in images:
            pixels = np.asarray(image, dtype=np.float32)
            colour = tuple(pixels[0, 0].astype(int))
            if colour == KILLS:
                os.kill(os.getpid(), signal.SIGKILL)
            if colour == HANGS:
                time.sleep(60)
            if colour == FAILS:
                raise RuntimeError("out of memory")
            levels.append(pixels.mean(axis=2) + np.float32(self.offset))
            unknown.append(colour == UNKNOWN and self.category_names is not None)
        time.sleep(self.seconds * len(images))
        given = self.category_indices(categories, len(images))
        category_of = given or (None if self.category_names is None else [0] * len(images))
        scores = np.array([level.mean() for level in levels], dtype=np.float32)
        rates = self.calibration.rates(false_alarm_rate, category_of, len(images))
        verdicts = self.calibration.judge(scores, levels, rates, category_of, np.array(unknown))
        names = None if category_of is None else names_of(category_of, unknown, self.category_names)
        features = None if self.references is None else np.stack(list(map(stub_features, images)))
        return Detections(scores, anomaly_maps=levels, categories=names, pooled_features=features, **verdicts._asdict())

    def reconstruct(self, image, categories=None, false_alarm_rate=None):
        changed = np.zeros((image.height, image.width), dtype=np.float32)
        changed[:6] = 0.5
        repaired = Image.new("RGB", image.size, (1, 2, 3))
        return SimpleNamespace(images=[repaired], difference_maps=[changed], confident=np.array([False]))


def textured(level: int, seed: int, tilt: float = 0.0) -> Image.Image:
    """Noise of a mean grey level, the left half brighter than the right one by `tilt`; its features are independent draws."""
    pixels = np.random.default_rng(seed).normal(0, 5, (SIZE[1], SIZE[0]))
    pixels += np.where(np.arange(SIZE[0]) < SIZE[0] // 2, tilt / 2, -tilt / 2)
    return Image.fromarray((pixels - pixels.mean() + level).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def stub_features(image: Image.Image) -> np.ndarray:
    """`(2,)`: how much brighter the left half is than the right one, and the upper than the lower one."""
    pixels = np.asarray(image.convert("L"), dtype=np.float32)
    height, width = (side // 2 for side in pixels.shape)
    return np.array([pixels[:, :width].mean() - pixels[:, width:].mean(), pixels[:height].mean() - pixels[height:].mean()])


def stub_reference_parts(images: int = len(SCORES)) -> ReferenceParts:
    """Of good parts of random levels."""
    levels = np.random.default_rng(0).integers(40, 130, images)
    parts = [textured(int(level), 10_000 + i) for i, level in enumerate(levels)]
    return ReferenceParts.of(np.stack(list(map(stub_features, parts))), list(map(look_of, parts)))


def load_stub(path: str) -> StubModel:
    """Loads the model of a folder that [`save_stub`] wrote."""
    if not (Path(path) / "offset").exists():
        raise ValueError(f"{path}: is not a stub")
    return StubModel(Path(path))


def save_stub(folder: Path, offset: float = 0.0, seconds: float = 0.0, categories: str = "", embeddings: bool = False) -> str:
    """A folder with such a model; its path. With `embeddings` it has pooled features, of its calibration images, too."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"offset": offset, "seconds": seconds, "categories": categories, "embeddings": embeddings}
    for name, value in settings.items():
        (folder / name).write_text(str(value))
    return str(folder)
