"""Calibrates a saved pipeline anew, on a folder of good images."""

from pathlib import Path

from ..atomic import writing
from ..data import DataError, find_layout, plain_folder
from ..pipeline_diffad import DiffADPipeline
from .folders import image_names


def held_out_images(folder: Path) -> list[Path]:
    """Images of good parts below a folder.

    Raises:
        DataError: if there are none, or the folder is a whole dataset with training images or defects in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    layout, _ = find_layout(folder)
    if layout is not plain_folder.LAYOUT:
        raise DataError(
            f"{folder}: is {layout.name}, and calibration takes only good images that were not trained on; name the folder "
            "with those, such as test/good"
        )
    return [folder / name for name in image_names(folder)]


def save_calibration(pipe: DiffADPipeline, model: Path) -> None:
    """Replaces what calibration sets in a saved pipeline: all of it or, if the process is killed, nothing."""
    parts = {"calibration": pipe.calibration, "discriminant": pipe.discriminant}
    with writing(model) as unfinished:
        for name, part in parts.items():
            if part is not None:
                part.save_pretrained(unfinished / name)
