"""The way from a defective image to a repaired one, as frames in a row or as an animated file."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .drawing import evenly_spaced

MAX_FRAMES = 6  # of a row
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 150, 1500


def trajectory_row(
    before: Image.Image, steps: Sequence[Image.Image], after: Image.Image
) -> tuple[list[Image.Image], list[str]]:
    """Frames and captions for [`filmstrip`]: input, a few of the intermediate images, repaired image.

    Args:
        steps: all intermediate images of a reconstruction; the last one is the repaired image at the model's resolution.
    """
    passed = steps[:-1]
    picked = evenly_spaced(len(passed), MAX_FRAMES - 2)
    captions = ["input", *(f"step {i + 1} of {len(passed) + 1}" for i in picked), "repaired"]
    return [before, *(passed[i] for i in picked), after], captions


def save_animation(path: Path, before: Image.Image, steps: Sequence[Image.Image], after: Image.Image) -> None:
    """Writes an endless GIF from the input through every intermediate image to the repaired one, all of the input's size."""
    frames = [before, *(step.resize(before.size, Image.Resampling.BICUBIC) for step in steps[:-1]), after]
    durations = [LAST_FRAME_MILLISECONDS, *[FRAME_MILLISECONDS] * (len(frames) - 2), LAST_FRAME_MILLISECONDS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
