"""Calibrates a saved pipeline anew, on a folder of good images."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .. import __version__
from ..data import DataError, find_layout, plain_folder
from ..imaging.preprocessing import load_region
from ..imaging.reading import ImageError, read_image
from ..monitoring.feedback_list import FeedbackList, check_drawn_at_random
from ..pipeline_diffad import DiffADPipeline
from ..scoring.calibration import Calibration
from ..system.atomic import writing
from ..system.file_digest import file_digest
from .folders import image_names
from .history import CALIBRATION, HistoryEntry, read_history, write_history


def calibration_images(folder: Path, all_good: bool = False, trained_on: Collection[Path] = ()) -> list[Path]:
    """Images of good parts below a folder that a model was not trained on.

    Args:
        all_good: all of them are good, though they lie in several subfolders.
        trained_on: image files that the model knows, absolute; they are left out, because their scores promise too much.

    Raises:
        DataError: if there are none, the folder is a whole dataset with training images or defects in it, or images lie in
            several subfolders that are not said to be all good.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    layout, _ = find_layout(folder, all_good)
    if layout is not plain_folder.LAYOUT:
        raise DataError(
            f"{folder}: is {layout.name}, and calibration takes only good images that were not trained on; name the folder "
            "with those, such as test/good"
        )
    images = [folder / name for name in image_names(folder)]
    kept = [path for path in images if path.resolve() not in trained_on]
    if not kept:
        raise DataError(f"{folder}: the model was trained on all {len(images)} images; name a folder of others")
    return kept


def without_defective(images: Sequence[Path], feedback: FeedbackList, folder: Path) -> list[Path]:
    """Images but those that are defective by the operator's word.

    Raises:
        ValueError: if the others were chosen because the model rejected them, or none are left.
    """
    digests = {path: file_digest(path) for path in images}
    check_drawn_at_random(digests.values(), feedback, folder)
    kept = [path for path in images if digests[path] not in feedback.defective]
    if not kept:
        raise DataError(f"{folder}: all {len(images)} images are defective by the feedback; name a folder of good ones")
    return kept


def calibration_entry(model_before: str, pipe: DiffADPipeline, folder: Path, images: Sequence[Path]) -> HistoryEntry:
    """What the history says of a calibration on images of a folder.

    Args:
        model_before: digest of the model before.
    """
    return HistoryEntry(
        event=CALIBRATION,
        version=__version__,
        model_before=model_before,
        model_after=pipe.digest,
        folder=str(folder.resolve()),
        calibrated=[path.relative_to(folder).as_posix() for path in images],
        counts={"images calibrated on": len(images)},
    )


def calibrate_on(pipe: DiffADPipeline, images: Sequence[Path], batch_size: int = 8, roi: Path | None = None) -> Calibration:
    """Sets the thresholds of a pipeline anew.

    Args:
        images: of good parts that the model was not trained on.
        batch_size: images per forward pass.
        roi: mask of the region of interest, white inside; None keeps the present one.

    Raises:
        ImageError: if an image or the region can't be used, or the region has another aspect than an image.
        ValueError: if there are too few images.
    """
    if roi is None:
        return pipe.calibrate(images, batch_size)
    region = load_region(roi)
    return pipe.calibrate([partial(_read_framed, path, region, roi) for path in images], batch_size, roi=region)


def check_aspect(region: np.ndarray, name: str, size: tuple[int, int]) -> None:
    """Refuses a region of interest `(height, width)` that an image of `size` (width, height) would stretch.

    Raises:
        ImageError: naming the region.
    """
    height, width = region.shape
    expected = width * size[1] / size[0]
    if abs(height - expected) > max(1, 0.01 * expected):  # a smaller region has rounded sides
        raise ImageError(
            f"{name}: a region of {width}x{height} pixels does not fit images of {size[0]}x{size[1]}; draw it on one of them"
        )


def _read_framed(path: Path, region: np.ndarray, roi: Path) -> Image.Image:
    image = read_image(path)
    check_aspect(region, str(roi), image.size)
    return image


def save_calibration(pipe: DiffADPipeline, model: Path, entry: HistoryEntry | None = None) -> None:
    """Replaces what calibration sets in a saved pipeline: all of it or, if the process is killed, nothing.

    Args:
        entry: is added to the model's history; None where the images that it is calibrated on stay the same.
    """
    parts = {"calibration": pipe.calibration, "profiles": pipe.profiles, "discriminant": pipe.discriminant}
    with writing(model) as unfinished:
        for name, part in parts.items():
            if part is not None:
                part.save_pretrained(unfinished / name)
        if entry is not None:
            write_history([*read_history(model), entry], unfinished)
