"""Repaired versions of a folder of any number of images."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..imaging.drawing import filmstrip
from ..imaging.reading import ImageError, read_image
from ..imaging.streams import read_batches
from ..imaging.trajectory import save_animation, trajectory_row
from ..pipeline_diffad import DiffADPipeline
from .folders import images_of, picture_path


@dataclass
class RepairSummary:
    """`changed` counts the images that were not returned as they came, `errors` holds a message per unreadable image."""

    images: int = 0
    changed: int = 0
    errors: list[str] = field(default_factory=list)


def repair_folder(
    pipe: DiffADPipeline,
    folder: Path,
    output: Path,
    preset: str = "default",
    false_alarm_rate: float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    category: str | None = None,
    film: bool = False,
) -> RepairSummary:
    """Writes `output/repaired` and `output/difference`, PNG files under the names of the images below `folder`.

    A difference of 255 is a change by the whole range of grey levels; see [`DiffADPipeline.reconstruct`] for the arguments.
    `category` is the category of all images, for a model of several; None recognises each image's. With `film` the way from
    each changed image to its repair is written to `output/film`, as a row of frames (PNG) and animated (GIF).

    Raises:
        DataError: if there are no images, or the output lies among them.
        ValueError: if the preset does not exist, or the pipeline can't give the false-alarm rate or does not know the category.
    """
    pipe.set_progress_bar_config(disable=True)
    folder, names = images_of(folder, [output])
    summary = RepairSummary()
    with tqdm(total=len(names), desc="repairing", unit="image", mininterval=1) as progress:
        for batch in read_batches(names, lambda name: read_image(folder / name), batch_size):
            summary.images += len(batch)
            summary.errors += [str(image) for _, image in batch if isinstance(image, ImageError)]
            readable = [(name, image) for name, image in batch if not isinstance(image, ImageError)]
            if readable:
                images = [image for _, image in readable]
                steps = "all" if film else ()
                repair = pipe.reconstruct(images, preset, batch_size, category, false_alarm_rate, seed, steps)
                for i, ((name, before), image) in enumerate(zip(readable, repair.images, strict=True)):
                    difference = repair.difference_maps[i]
                    image.save(picture_path(output / "repaired", name, ".png"))
                    levels = (255 * difference).round().astype(np.uint8)
                    Image.fromarray(levels).save(picture_path(output / "difference", name, ".png"))
                    summary.changed += bool(difference.any())
                    if film and difference.any():
                        frames = trajectory_row(before, repair.intermediates[i], image)
                        filmstrip(*frames).save(picture_path(output / "film", name, ".png"))
                        save_animation(picture_path(output / "film", name, ".gif"), before, repair.intermediates[i], image)
            progress.update(len(batch))
    return summary
