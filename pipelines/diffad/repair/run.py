"""One batch repaired, and carried over to the images at their own sizes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..imaging.blending import blend_change
from ..scoring.inputs import ImageBatch
from .context import RepairContext
from .gradient_denoising import mahalanobis_loss
from .inpainting import Inpainting
from .presets import RepairMethod
from .recorder import StepRecorder
from .tiled_context import over_tiles

# Given the pipeline, the step (from 1), the batch's first image and {"images": (B, 3, H, W)}; may return other images.
StepCallback = Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class RepairedImage(NamedTuple):
    """One image as it should have looked; the fields are those of [`ReconstructionOutput`], for this image."""

    image: Image.Image
    difference_map: np.ndarray
    intermediates: list[Image.Image]
    trace: np.ndarray
    confident: bool | None


def repair_batch(
    method: RepairMethod,
    batch: ImageBatch,
    context: RepairContext,
    tile_overlap: float,
    callback: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    kept_steps: Sequence[int] | Literal["all"] = (),
    measures_loss: bool = False,
) -> list[RepairedImage]:
    """Repairs the images of a batch.

    Args:
        tile_overlap: of tiles, in which networks see images larger than the model's resolution.
        callback, kept_steps: as of [`StepRecorder`].
        measures_loss: whether to measure Eq. 12 of the input and after every step.

    Raises:
        ValueError: if a setting does not fit the model, or there are fewer steps than are to be kept.
    """
    is_whole = tuple(batch.pixels.shape[-2:]) == context.size
    tiled = context if is_whole else over_tiles(context, tile_overlap)
    loss = (lambda images: mahalanobis_loss(tiled.distance(images))) if measures_loss else None
    recorder = StepRecorder(callback, kept_steps, loss)
    recorder.measure(batch.pixels)
    # Inpainting cuts windows of its own around the defects.
    result = method.run(batch.pixels, context if isinstance(method, Inpainting) else tiled, recorder)
    recorder.check_reached()
    repaired = []
    for i, original in enumerate(batch.originals):
        image = blend_change(original, batch.pixels[i], result.images[i], result.replaced[i])
        change = np.abs(np.asarray(image, dtype=np.float32) - np.asarray(original, dtype=np.float32))
        trace = np.array([losses[i] for losses in recorder.losses], dtype=np.float32)
        kept = [pictures[i] for pictures in recorder.pictures]
        confident = None if result.confident is None else bool(result.confident[i])
        repaired.append(RepairedImage(image, change.mean(axis=2) / 255, kept, trace, confident))
    return repaired


def step_callback(callback: StepCallback, pipe: Any, batch_start: int) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """A pipeline's `callback(pipe, step, batch_start, {"images": images})` as [`StepRecorder`] calls it."""

    def call(step: int, images: torch.Tensor) -> torch.Tensor:
        return (callback(pipe, step, batch_start, {"images": images}) or {}).get("images", images)

    return call
