"""The good images that a trained model was calibrated on, and neither trained nor fitted on."""

import json
from pathlib import Path

from diffad.data import DataError, Sample, category_samples, split_held_out, training_samples


def held_out_samples(model: Path, data: str | None = None) -> list[Sample]:
    """Recovered from the settings that train.py wrote beside the model.

    Args:
        data: where the training data lies now; None is where it was.

    Raises:
        DataError: if the model folder lacks its training settings, or the data is not what they fit.
    """
    path = model / "training_config.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a folder that train.py wrote")
    settings = json.loads(path.read_text())
    data = settings["data"] if data is None else data
    samples = category_samples(data, settings["categories"]) if settings.get("categories") else training_samples(data)
    return split_held_out(samples, settings["held_out_fraction"], settings["seed"])[1]
