"""What a repair passes on its way: kept, measured, and shown to the caller's callback."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ..imaging.tensors import to_pil
from ..scoring.integers import are_integers


def check_kept_steps(steps: Any) -> None:
    """Refuses what names no steps of a repair.

    Raises:
        ValueError: naming the argument of [`diffad.DiffADPipeline.reconstruct`].
    """
    if steps != "all" and not (are_integers(steps) and min(steps, default=1) >= 1):
        raise ValueError(f'intermediate_steps must be numbers of steps, from 1 on, or "all", got {steps!r}')


class StepRecorder:
    """Called with the images `(B, 3, H, W)` after every step; returns those to go on with.

    Args:
        callback: given the number of the step (from 1) and the images, returns those to go on with; None leaves them.
        kept_steps: after which the images are kept as pictures, or "all".
        loss: images to losses `(B,)` that are kept of the input and of every step; None measures nothing.
    """

    def __init__(
        self,
        callback: Callable[[int, torch.Tensor], torch.Tensor] | None,
        kept_steps: Sequence[int] | Literal["all"],
        loss: Callable[[torch.Tensor], torch.Tensor] | None,
    ):
        self.callback, self.kept_steps, self.loss = callback, kept_steps, loss
        self.step = 0
        self.losses: list[np.ndarray] = []  # (B,) of the input and of every step
        self.pictures: list[list[Image.Image]] = []  # of every kept step, of every image

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.step += 1
        if self.callback is not None:
            images = self.callback(self.step, images)
        self.measure(images)
        if self.kept_steps == "all" or self.step in self.kept_steps:
            self.pictures.append([to_pil(image) for image in images])
        return images

    def check_reached(self) -> None:
        """Refuses steps that were asked for and that the repair has not.

        Raises:
            ValueError: saying how many there are.
        """
        if self.kept_steps != "all" and max(self.kept_steps, default=0) > self.step:
            asked = f"intermediate_steps: step {max(self.kept_steps)} was asked for"
            raise ValueError(f'{asked}, but this repair has {self.step} steps; "all" keeps each of them')

    def measure(self, images: torch.Tensor) -> None:
        """Keeps the losses of images that are not those after a step."""
        if self.loss is not None:
            self.losses.append(self.loss(images).cpu().numpy())
