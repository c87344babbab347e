"""Repaired versions of a folder of any number of images."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..deprecation import accepts_former_names
from ..imaging.decoding import ImageError, pixel_count
from ..imaging.drawing import filmstrip
from ..imaging.reading import read_image
from ..imaging.streams import read_batches
from ..imaging.trajectory import save_animation, trajectory_row
from ..pipeline_diffad import DiffADPipeline
from .folders import images_of, picture_path


@dataclass
class RepairSummary:
    """What became of a folder.

    Args:
        images: their number, unreadable ones included.
        changed: how many were not returned as they came.
        not_confident: names of those whose repair may well not be what the part should have looked like.
        errors: a message per unreadable image.
    """

    images: int = 0
    changed: int = 0
    not_confident: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@accepts_former_names(class_label="category", film="trajectory")
def repair_folder(
    pipe: DiffADPipeline,
    folder: Path,
    output: Path,
    preset: str = "default",
    false_alarm_rate: float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    category: str | None = None,
    trajectory: bool = False,
) -> RepairSummary:
    """Writes `output/repaired` and `output/difference`, PNG files under the names of the images below `folder`.

    A difference of 255 is a change by the whole range of grey levels.

    Args:
        preset, false_alarm_rate, seed, batch_size: as for [`DiffADPipeline.reconstruct`].
        category: of all images, for a model of several; None recognises each image's.
        trajectory: also write the way from each changed image to its repair to `output/trajectory`, as a row of frames (PNG)
            and animated (GIF).

    Raises:
        DataError: if there are no images, or the output lies among them.
        ValueError: if the preset does not exist, or the pipeline can't give the false-alarm rate or does not know the category.
    """
    pipe.set_progress_bar_config(disable=True)
    folder, names = images_of(folder, [output])
    summary = RepairSummary()
    with tqdm(total=len(names), desc="repairing", unit="image", mininterval=1, disable=None) as progress:
        paths = {name: folder / name for name in names}
        read, pixels = (lambda name: read_image(paths[name])), (lambda name: pixel_count(paths[name]))
        for batch in read_batches(names, read, batch_size, pixels):
            summary.images += len(batch)
            summary.errors += [str(image) for _, image in batch if isinstance(image, ImageError)]
            readable = {name: image for name, image in batch if not isinstance(image, ImageError)}
            if readable:
                repair = pipe.reconstruct(
                    list(readable.values()),
                    preset,
                    batch_size=batch_size,
                    categories=category,
                    false_alarm_rate=false_alarm_rate,
                    seed=seed,
                    intermediate_steps="all" if trajectory else (),
                )
                for i, (name, before) in enumerate(readable.items()):
                    after, difference = repair.images[i], repair.difference_maps[i]
                    _save_repair(output, name, after, difference)
                    if repair.confident is not None and not repair.confident[i]:
                        summary.not_confident.append(name)
                    if difference.any():
                        summary.changed += 1
                        if trajectory:
                            _save_trajectory(output / "trajectory", name, before, repair.intermediates[i], after)
            progress.update(len(batch))
    return summary


def _save_repair(output: Path, name: str, repaired: Image.Image, difference: np.ndarray) -> None:
    repaired.save(picture_path(output / "repaired", name, ".png"))
    levels = (255 * difference).round().astype(np.uint8)  # (H, W)
    Image.fromarray(levels).save(picture_path(output / "difference", name, ".png"))


def _save_trajectory(output: Path, name: str, before: Image.Image, steps: list[Image.Image], after: Image.Image) -> None:
    frames, captions = trajectory_row(before, steps, after)
    filmstrip(frames, captions).save(picture_path(output, name, ".png"))
    save_animation(picture_path(output, name, ".gif"), before, steps, after)
