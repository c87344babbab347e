"""Calibrates a saved pipeline anew, on a folder of good images."""

import os
import tempfile
from pathlib import Path

from .data import DataError
from .image_stream import image_names
from .pipeline_diffad import DiffADPipeline


def held_out_images(folder: Path) -> list[Path]:
    """Images of good parts below a folder.

    Raises:
        DataError: if there are none, or the folder is a whole dataset with training images or defects in it.
    """
    for name in ("train", "test", "ground_truth"):
        if (folder / name).is_dir():
            raise DataError(
                f"{folder}: holds a {name} folder, and calibration takes only good images that were not trained on; name "
                "the folder with those, such as test/good"
            )
    return [folder / name for name in image_names(folder)]


def save_calibration(pipe: DiffADPipeline, model: Path) -> None:
    """Replaces the calibration of a saved pipeline, so that a reader sees either the old or the new one."""
    folder = model / "calibration"
    with tempfile.TemporaryDirectory(dir=model, prefix=".calibration") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        pipe.calibration.save_pretrained(new)
        os.rename(folder, old)
        os.rename(new, folder)
