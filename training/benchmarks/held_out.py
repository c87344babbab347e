"""The good images that a trained model was calibrated on, and neither trained nor fitted on."""

import json
from pathlib import Path

import numpy as np
from diffad.data import DataError, Sample, split_by_names
from diffad.imaging.preprocessing import resize_rgb
from diffad_training.good_images import good_samples_of, read_held_out


def held_out_samples(model: Path, data: str | None = None) -> list[Sample]:
    """The held-out images whose names train.py wrote beside the model.

    Args:
        data: where the training data lies now; None is where it was.

    Raises:
        DataError: if the model folder lacks its training settings or the names, or the data is not what they fit.
    """
    path = model / "training_config.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a folder that train.py wrote")
    settings = json.loads(path.read_text(encoding="utf-8"))
    names = read_held_out(model)
    source = settings["data"] if data is None else data
    samples = good_samples_of(source, settings.get("categories", ()), settings.get("all_good", False))
    return split_by_names(samples, names)[1]


def held_out_images(model: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """`(H, W, 3)` uint8 of the good images that the model was calibrated on and neither trained nor fitted on."""
    return [resize_rgb(sample.read(), size).transpose(1, 2, 0) for sample in held_out_samples(model)]
