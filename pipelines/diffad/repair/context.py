"""What every method of repair is given, and what it gives back.

A method is a frozen set of settings whose `run(images, context, on_step)` repairs a batch `(B, 3, H, W)` in [-1, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# Images (B, 3, H, W) to squared Mahalanobis distances (B, h, w), differentiable.
Distance = Callable[[torch.Tensor], torch.Tensor]
# Called with the images (B, 3, H, W) after every step; returns the images to go on with.
OnStep = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RepairResult:
    """A repaired batch.

    Args:
        images: `(B, 3, H, W)` in [-1, 1], perhaps beyond.
        replaced: `(B, 1, H, W)` in [0, 1], 1 where nothing of the input is to remain.
        confident: `(B,)` bool, False where what is shown may well not be what the part should have looked like; None of
            methods that can't tell.
    """

    images: torch.Tensor
    replaced: torch.Tensor
    confident: torch.Tensor | None = None

    @classmethod
    def of_adjusted(cls, images: torch.Tensor) -> "RepairResult":
        """Result of a method that adjusts every pixel a little and replaces none."""
        return cls(images, torch.zeros_like(images[:, :1]))


@dataclass(frozen=True)
class RepairContext:
    """Model, noise and thresholds for a batch of B images, as methods of repair see them.

    Every function takes B images, in the order of the batch, and treats them independently. They are float32 images
    `(B, 3, height, width)` in [-1, 1] of the model's resolution; those of `score` are larger where a model scores images
    in tiles, and those of `add_noise`, `predict_x0` and `reverse_step` may have any sides that are divisible by `stride`.
    All results are float32, whatever the type of the UNet.

    Args:
        size: `(height, width)`, the model's resolution.
        stride: pixels by which the sides of what the UNet takes are divisible.
        select: `(N,)` indices of images to the context of these N images; an index may occur several times.
        distance: images to squared Mahalanobis distances `(B, h, w)`, differentiable.
        add_noise: `(images, t)` to x_t, with the one noise image that seed, t and the images' size determine.
        predict_x0: `(x_t, t)` to the clean images; one UNet pass.
        draw_noise: `(images, draw)` to the standard normal noise of their shape that seed, number of the draw and the images'
            size determine, the same for all images; apart from that of `add_noise`.
        reverse_step: `(x_t, t, num_inference_steps, noise)` to x_{t-1} of the respaced chain; one UNet pass. The mean of
            p_theta where `noise` is None, else a sample with that noise, of the shape of x_t.
        betas: `(T,)`, noise schedule of the full chain, float64 on the CPU.
        chain_timesteps: `num_inference_steps` to the descending timesteps of the respaced chain; None to those of the full one.
        score: `(images, replaced)` to anomaly maps `(B, H, W)` and image scores `(B,)`; as many UNet passes as the score has
            timesteps. The images are those of the batch, but for what was done to them; `replaced` is as of [`RepairResult`].
        image_threshold: `(B,)`, scores above it make an image defective.
        pixel_threshold: `(B,)`, values of the anomaly map above it make a pixel defective.
        references: `(R, 3, height, width)`, images of good parts; None where the model has none.
        parts_turn: whether parts lie in any direction.
    """

    size: tuple[int, int]
    stride: int
    select: Callable[[torch.Tensor], "RepairContext"]
    distance: Distance
    add_noise: Callable[[torch.Tensor, int], torch.Tensor]
    predict_x0: Callable[[torch.Tensor, int], torch.Tensor]
    draw_noise: Callable[[torch.Tensor, int], torch.Tensor]
    reverse_step: Callable[[torch.Tensor, int, int | None, torch.Tensor | None], torch.Tensor]
    betas: torch.Tensor
    chain_timesteps: Callable[[int | None], list[int]]
    score: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    image_threshold: torch.Tensor
    pixel_threshold: torch.Tensor
    references: torch.Tensor | None = None
    parts_turn: bool = False

    def check_timesteps(self, timesteps: Sequence[int], num_inference_steps: int | None = None) -> None:
        """Refuses timesteps, in original units, that are not part of a respaced chain, or of the full one.

        Raises:
            ValueError: naming them.
        """
        chain = self.chain_timesteps(num_inference_steps)
        if off := sorted(set(timesteps).difference(chain)):
            nearest = sorted({min(chain, key=lambda t: abs(t - wrong)) for wrong in off})
            raise ValueError(f"timesteps {off} are not in the chain of {len(chain)} steps; the nearest are {nearest}")
