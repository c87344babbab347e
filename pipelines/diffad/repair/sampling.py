"""Samples instead of means: the marked region drawn by a short reverse chain, with everything around it held fixed."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .attempts import BestAttempt, score_attempt
from .confidence import is_told
from .context import Distance, OnStep, RepairContext, RepairResult
from .cycle_spinning import cycle_spin
from .fill import fill_from_surroundings
from .gradient_denoising import gradient_step, loss_and_gradient, mahalanobis_loss
from .mask import defect_region, soft_edge
from .proposals import blend_in


class ChainStep(NamedTuple):
    """A step of a respaced chain: its timestep, alpha bar there, and alpha bar of the image that it leads to."""

    timestep: int
    alpha_bar: float
    next_alpha_bar: float


@dataclass(frozen=True)
class RegionSampling:
    """Draws the marked region from the diffusion model, several times, and keeps the draw with the lowest Eq. 12.

    The region starts as its smooth fill at a high noise level and comes back along a respaced chain of DDIM steps with noise
    (Song et al. 2021). Before each of them everything outside is set to the input at the same noise level, and a step may be
    taken several times, with the noise put back in between, so that inside and outside come to agree (RePaint, Lugmayr et al.
    2022). With guidance the clean image of each step but the last takes a step of Eq. 13 inside the region, down the gradient
    of Eq. 12, and the denoising that follows cleans up after it: Algorithm 1 confined to the defect. The drawn region is
    blended in the domain of gradients; outside of it nothing changes, and an image that scores as normal is returned as it is.

    Args:
        start: timestep at which the chain begins; the nearest one of the chain is taken.
        num_inference_steps: length of the respaced chain, of which the part from `start` on is run.
        eta: share of the noise that each step draws anew, in [0, 1]: 0 is a deterministic chain, 1 that of the DDPM.
        repeats: how often each step is taken.
        draws: how many, each with noise of its own.
        guidance: step size s of Eq. 13 in [0, 1]; 0 does without.
        region_level, peak_share, margin, most_enclosed: as of [`diffad.repair.inpainting.Inpainting`].

    Raises:
        ValueError: if a setting is out of its range.
    """

    start: int = 490
    num_inference_steps: int = 30
    eta: float = 1.0
    repeats: int = 1
    draws: int = 3
    guidance: float = 0.0
    region_level: float = 0.7
    peak_share: float = 0.45
    margin: int = 4
    most_enclosed: float = 0.2

    def __post_init__(self):
        at_least_0 = ("region_level", "peak_share", "margin", "most_enclosed")
        for name, lowest in (("repeats", 1), ("draws", 1), *((name, 0) for name in at_least_0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        for name in ("eta", "guidance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")

    def run(self, images: torch.Tensor, context: RepairContext, on_step: OnStep) -> RepairResult:
        """Repairs those of the images `(B, 3, H, W)` that score as defective; every draw has as many steps as UNet passes.

        Raises:
            ValueError: if the model knows no such noise level, or a score is not finite.
        """
        if not 0 <= self.start < len(context.betas):
            raise ValueError(f"start must lie in 0..{len(context.betas) - 1}, the model's noise levels, got {self.start}")
        steps = self.steps(context)
        region = torch.zeros_like(images[:, :1])  # (B, 1, H, W)
        anomaly_map, score = score_attempt(images, region, context)  # (B, H, W), (B,)
        is_good = score <= context.image_threshold  # (B,)
        if is_good.all():
            for _ in range(self.draws * self.repeats * len(steps)):  # as many steps as beside other images
                images = on_step(images)
            return RepairResult(images, region, is_good)
        defective = (~is_good).nonzero()[:, 0]  # (D,), indices of the images to repair
        context, anomaly_map, inputs = context.select(defective), anomaly_map[defective], images[defective]
        marked = defect_region(anomaly_map, context.pixel_threshold, self.region_level, self.peak_share, self.margin)

        def on_part(part: torch.Tensor) -> torch.Tensor:
            return on_step(images.index_copy(0, defective, part))[defective]

        best, numbers = BestAttempt(images), itertools.count(1)
        for _ in range(self.draws):
            drawn = self._draw(inputs, marked, steps, context, numbers, on_part)  # (D, 3, H, W)
            best.update(defective, drawn, marked, mahalanobis_loss(context.distance(drawn)))
        _, score = score_attempt(best.images[defective], marked, context)  # (D,)
        told = is_told(anomaly_map, context.pixel_threshold, marked, self.most_enclosed)  # (D,)
        confident = is_good.index_copy(0, defective, told & (score <= context.image_threshold))
        return RepairResult(best.images, soft_edge(best.replaced), confident)

    def steps(self, context: RepairContext) -> list[ChainStep]:
        """The steps of the chain from the start on."""
        timesteps = context.chain_timesteps(self.num_inference_steps)  # descending
        first = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - self.start))
        alpha_bars = [*(1 - context.betas).cumprod(0)[timesteps[first:]].tolist(), 1.0]
        return [ChainStep(*step) for step in zip(timesteps[first:], alpha_bars, alpha_bars[1:])]

    def _draw(
        self,
        inputs: torch.Tensor,
        region: torch.Tensor,
        steps: Sequence[ChainStep],
        context: RepairContext,
        numbers: Iterator[int],
        on_step: OnStep,
    ) -> torch.Tensor:
        """One draw of the region `(D, 1, H, W)` of images `(D, 3, H, W)`, blended in; each noise takes one of the numbers."""

        def noise() -> torch.Tensor:
            return context.draw_noise(inputs, next(numbers))

        x = renoise(fill_from_surroundings(inputs, region), 1.0, steps[0].alpha_bar, noise())  # (D, 3, H, W)
        for step in steps:
            for repeats_left in reversed(range(self.repeats)):
                xt = torch.where(region > 0, x, renoise(inputs, 1.0, step.alpha_bar, noise()))
                x0 = _predict_x0(xt, step.timestep, context)
                if self.guidance and step is not steps[-1]:
                    x0 = guided(x0, inputs, region, self.guidance, context.distance)
                x = ddim_step(x0, xt, step.alpha_bar, step.next_alpha_bar, self.eta, noise())
                if step is steps[-1] and not repeats_left:
                    x = torch.cat([blend_in(*of_image) for of_image in zip(inputs, region, x[:, None])])
                x = on_step(torch.where(region > 0, x, inputs))
                if repeats_left:
                    x = renoise(x, step.next_alpha_bar, step.alpha_bar, noise())
        return x


def _predict_x0(xt: torch.Tensor, t: int, context: RepairContext) -> torch.Tensor:
    """Clean images `(D, 3, H, W)`, looked at in a frame that goes on beyond their borders."""
    return cycle_spin(lambda frame: context.predict_x0(frame, t), xt, context.stride, spins=1)


def renoise(x: torch.Tensor, alpha_bar: float, lower_alpha_bar: float, noise: torch.Tensor) -> torch.Tensor:
    """Forward process from one noise level to a higher one; alpha bar is 1 of a clean image."""
    kept = lower_alpha_bar / alpha_bar
    return math.sqrt(kept) * x + math.sqrt(1 - kept) * noise


def ddim_step(
    x0: torch.Tensor, xt: torch.Tensor, alpha_bar: float, next_alpha_bar: float, eta: float, noise: torch.Tensor
) -> torch.Tensor:
    """From x_t to the chain's next, less noisy image (Song et al. 2021, Eqs. 12 and 16), given the clean image predicted."""
    sigma = eta * math.sqrt((1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha_bar / next_alpha_bar))
    epsilon = (xt - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)
    return math.sqrt(next_alpha_bar) * x0 + math.sqrt(1 - next_alpha_bar - sigma**2) * epsilon + sigma * noise


def guided(x0: torch.Tensor, inputs: torch.Tensor, region: torch.Tensor, step_size: float, distance: Distance) -> torch.Tensor:
    """Clean images after a step of Eq. 13 inside the region, down the gradient of Eq. 12 of the region put into the inputs.

    As in Algorithm 1 the gradient is scaled: to a mean square of 1 inside the region.

    Args:
        x0, inputs: `(D, 3, H, W)` in [-1, 1].
        region: `(D, 1, H, W)`, above 0 inside.
        step_size: s.
    """
    inside = region > 0
    _, gradient = loss_and_gradient(torch.where(inside, x0, inputs), distance)
    gradient = torch.where(inside, gradient, 0)
    mean_square = gradient.square().sum(dim=(1, 2, 3), keepdim=True) / (3 * inside.sum(dim=(1, 2, 3), keepdim=True))
    direction = -gradient / torch.where(mean_square > 0, mean_square, 1).sqrt()
    return torch.where(inside, gradient_step(x0, direction, step_size, omega=1.0).clamp(-1, 1), x0)
