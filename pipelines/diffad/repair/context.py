"""What every recipe that turns defective images into normal ones is given, and what it gives back.

A recipe is a frozen set of settings with a `run` that takes a batch `(B, 3, H, W)` in [-1, 1] through its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .gradient_denoising import Distance

# Called with the images after every step; returns the images to go on with.
Report = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """What a recipe makes of a batch.

    Args:
        images: `(B, 3, H, W)` in [-1, 1], perhaps beyond.
        replaced: `(B, 1, H, W)` in [0, 1], where nothing of the input is to remain.
    """

    images: torch.Tensor
    replaced: torch.Tensor

    @classmethod
    def changed(cls, images: torch.Tensor) -> "Reconstruction":
        """Of a recipe that changes everything a little and replaces nothing."""
        return cls(images, torch.zeros_like(images[:, :1]))


@dataclass(frozen=True)
class RepairContext:
    """What recipes may ask of the pipeline; every function takes a batch and treats its images independently.

    All take images of the model's resolution; `anomaly_map`, of a model that scores images in tiles, larger ones, too, and
    `add_noise` and `predict_x0` any whose sides are divisible by the stride.

    Args:
        size: `(height, width)`, the model's resolution.
        stride: pixels by which the sides of what `predict_x0` takes are divisible.
        select: the same for some images of the batch, by their indices, of which one may occur several times.
        distance: images to squared Mahalanobis distances `(B, h, w)`, differentiable.
        add_noise: `(images, t)` to x_t, with the one noise image that seed, t and the images' size determine.
        predict_x0: `(x_t, t)` to the clean images; one UNet pass.
        reverse_step: `(x_t, t, num_inference_steps, draw)` to x_{t-1} of the respaced chain; one UNet pass. The mean of
            p_theta where `draw` is None, else a sample with the noise of that number.
        chain: `num_inference_steps` to the descending timesteps of the respaced chain.
        anomaly_map: images to standardised anomaly maps `(B, H, W)`; as many UNet passes as the calibration has timesteps.
        image_score: anomaly maps to image scores `(B,)`.
        image_threshold, pixel_threshold: `(B,)`, above them images and pixels are called defective.
    """

    size: tuple[int, int]
    stride: int
    select: Callable[[torch.Tensor], "RepairContext"]
    distance: Distance
    add_noise: Callable[[torch.Tensor, int], torch.Tensor]
    predict_x0: Callable[[torch.Tensor, int], torch.Tensor]
    reverse_step: Callable[[torch.Tensor, int, int, int | None], torch.Tensor]
    chain_timesteps: Callable[[int], list[int]]
    anomaly_map: Callable[[torch.Tensor], torch.Tensor]
    image_score: Callable[[torch.Tensor], torch.Tensor]
    image_threshold: torch.Tensor
    pixel_threshold: torch.Tensor
