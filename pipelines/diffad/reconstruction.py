"""Recipes that turn defective images into normal ones: ours, the paper's Algorithm 1 and the two baselines it is compared with.

A recipe is a frozen set of settings with a `run` that takes a batch `(B, 3, H, W)` in [-1, 1] through its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .gradient_denoising import Distance, gradient_step, loss_and_gradient, unit_direction
from .region import defect_region, fill_from_surroundings, soft_edge

# (images, Eq. 12 loss (B,) or None) to the images to go on with.
Report = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Models:
    """What recipes may ask of the pipeline; every function takes a batch and treats its images independently.

    Args:
        select: the same for some images of the batch, by their indices.
        distance: images to squared Mahalanobis distances `(B, h, w)`, differentiable.
        add_noise: `(images, t)` to x_t, with the one noise image that seed and t determine.
        predict_x0: `(x_t, t)` to the clean images; one UNet pass.
        reverse_step: `(x_t, t, num_inference_steps, draw)` to x_{t-1} of the respaced chain; one UNet pass. The mean of
            p_theta where `draw` is None, else a sample with the noise of that number.
        chain: `num_inference_steps` to the descending timesteps of the respaced chain.
        anomaly_map: images to standardised anomaly maps `(B, H, W)`; as many UNet passes as the calibration has timesteps.
        image_score: anomaly maps to image scores `(B,)`.
        image_threshold, pixel_threshold: `(B,)`, above them images and pixels are called defective.
    """

    select: Callable[[torch.Tensor], "Models"]
    distance: Distance
    add_noise: Callable[[torch.Tensor, int], torch.Tensor]
    predict_x0: Callable[[torch.Tensor, int], torch.Tensor]
    reverse_step: Callable[[torch.Tensor, int, int, int | None], torch.Tensor]
    chain: Callable[[int], list[int]]
    anomaly_map: Callable[[torch.Tensor], torch.Tensor]
    image_score: Callable[[torch.Tensor], torch.Tensor]
    image_threshold: torch.Tensor
    pixel_threshold: torch.Tensor


@dataclass(frozen=True)
class GradientDescent:
    """Plain gradient descent on Eq. 12 (Eq. 13), which corrupts the image after some steps: a baseline of the paper.

    Args:
        num_steps: N.
        step_size: s.
        normalize_gradient: scale every image's gradient to unit variance, as the released code does.
    """

    num_steps: int = 500
    step_size: float = 0.02
    normalize_gradient: bool = True

    def run(self, images: torch.Tensor, models: Models, report: Report) -> torch.Tensor:
        for _ in range(self.num_steps):
            images = self.step(images, models, report)
        return images

    def step(self, images: torch.Tensor, models: Models, report: Report) -> torch.Tensor:
        loss, gradient = loss_and_gradient(images, models.distance)
        direction = unit_direction(gradient) if self.normalize_gradient else -gradient
        return report(gradient_step(images, direction, self.step_size), loss)


@dataclass(frozen=True)
class GradientDenoising(GradientDescent):
    """Algorithm 1: every `denoise_every`-th gradient step is followed by a denoising one. Defaults are the released code's.

    Args:
        denoise_every: N_d.
        timestep: noise level at which the UNet denoises, in original units.
        num_inference_steps: length of the respaced chain of which one reverse step is taken; None denoises completely.
        stochastic: draw from p_theta instead of taking its mean.
    """

    denoise_every: int = 5
    timestep: int = 32
    num_inference_steps: int | None = 250
    stochastic: bool = False

    def run(self, images: torch.Tensor, models: Models, report: Report) -> torch.Tensor:
        for i in range(1, self.num_steps + 1):
            images = self.step(images, models, report)
            if i % self.denoise_every == 0:
                if self.num_inference_steps is None:
                    images = models.predict_x0(images, self.timestep)
                else:
                    draw = i if self.stochastic else None
                    images = models.reverse_step(images, self.timestep, self.num_inference_steps, draw)
                images = report(images, None)
        return images


@dataclass(frozen=True)
class PartialDiffusion:
    """Noise to a timestep, denoise back by the reverse chain: the other baseline.

    Args:
        timestep: where the noise ends; the nearest one of the chain is taken.
        num_inference_steps: length of the respaced chain.
        stochastic: sample the reverse steps (DDPM) instead of taking their means.
    """

    timestep: int = 200
    num_inference_steps: int = 100
    stochastic: bool = False

    def run(self, images: torch.Tensor, models: Models, report: Report) -> torch.Tensor:
        chain = models.chain(self.num_inference_steps)
        start = min(range(len(chain)), key=lambda i: abs(chain[i] - self.timestep))
        images = models.add_noise(images, chain[start])
        for t in chain[start:]:
            images = models.reverse_step(images, t, self.num_inference_steps, t if self.stochastic and t > 0 else None)
            images = report(images, None)
        return images


@dataclass(frozen=True)
class Repair:
    """Gradient denoising where the anomaly map says there is a defect, and nowhere else (ours).

    The region is filled from its surroundings; then every round takes gradient steps inside it, noises the image to a
    timestep, denoises it completely and puts the input back outside. An image that scores as normal is returned as it is, and
    one that still scores as defective afterwards gets a second go with a larger region.

    Args:
        timesteps: noise level of each round, descending.
        gradient_steps: N_d, gradient steps before each denoising.
        step_size: s.
        region_level: pixels above this share of the pixel threshold belong to the region, where they touch one above it.
        margin: pixels by which the region is widened, at the model's resolution.
        attempts: how often the region is found anew.
    """

    timesteps: tuple[int, ...] = (200,)
    gradient_steps: int = 5
    step_size: float = 0.02
    region_level: float = 0.5
    margin: int = 4
    attempts: int = 2

    def run(self, images: torch.Tensor, models: Models, report: Report) -> torch.Tensor:
        repaired = images.clone()
        region = torch.zeros_like(images[:, :1])  # (B, 1, H, W)
        active = torch.arange(len(images), device=images.device)
        for _ in range(self.attempts):
            anomaly_map = models.select(active).anomaly_map(repaired[active])
            defective = models.image_score(anomaly_map) > models.image_threshold[active]
            active, anomaly_map = active[defective], anomaly_map[defective]
            if len(active) == 0:
                break
            found = defect_region(anomaly_map, models.pixel_threshold[active], self.region_level, self.margin)
            region[active] = torch.maximum(region[active], found)
            repaired[active] = self._repair(images[active], region[active], models.select(active))
            repaired = report(repaired, None)
        return repaired

    def _repair(self, images: torch.Tensor, region: torch.Tensor, models: Models) -> torch.Tensor:
        opacity = soft_edge(region)
        repaired = fill_from_surroundings(images, region)
        for t in self.timesteps:
            for _ in range(self.gradient_steps):
                _, gradient = loss_and_gradient(repaired, models.distance)
                stepped = gradient_step(repaired, unit_direction(gradient, region), self.step_size)
                repaired = torch.lerp(images, stepped, opacity)
            denoised = models.predict_x0(models.add_noise(repaired, t), t)
            repaired = torch.lerp(images, denoised, opacity)
        return repaired


Recipe = Repair | GradientDenoising | GradientDescent | PartialDiffusion
PRESETS: dict[str, Recipe] = {
    "default": Repair(),
    "paper": GradientDenoising(),
    "gradient_descent": GradientDescent(),
    "partial_diffusion": PartialDiffusion(),
}
