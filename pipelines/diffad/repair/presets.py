"""Recipes that turn defective images into normal ones: the paper's Algorithm 1, its two baselines, and all presets."""

from dataclasses import dataclass

import torch

from .context import Reconstruction, RepairContext, Report
from .gradient_denoising import gradient_step, loss_and_gradient, unit_direction
from .inpainting import Repair


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

    def run(self, images: torch.Tensor, models: RepairContext, report: Report) -> Reconstruction:
        for _ in range(self.num_steps):
            images = report(self.step(images, models))
        return Reconstruction.changed(images)

    def step(self, images: torch.Tensor, models: RepairContext) -> torch.Tensor:
        _, gradient = loss_and_gradient(images, models.distance)
        direction = unit_direction(gradient) if self.normalize_gradient else -gradient
        return gradient_step(images, direction, self.step_size)


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

    def run(self, images: torch.Tensor, models: RepairContext, report: Report) -> Reconstruction:
        for i in range(1, self.num_steps + 1):
            images = report(self.step(images, models))
            if i % self.denoise_every == 0:
                if self.num_inference_steps is None:
                    images = models.predict_x0(images, self.timestep)
                else:
                    draw = i if self.stochastic else None
                    images = models.reverse_step(images, self.timestep, self.num_inference_steps, draw)
                images = report(images)
        return Reconstruction.changed(images)


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

    def run(self, images: torch.Tensor, models: RepairContext, report: Report) -> Reconstruction:
        chain = models.chain_timesteps(self.num_inference_steps)
        start = min(range(len(chain)), key=lambda i: abs(chain[i] - self.timestep))
        images = models.add_noise(images, chain[start])
        for t in chain[start:]:
            images = models.reverse_step(images, t, self.num_inference_steps, t if self.stochastic and t > 0 else None)
            images = report(images)
        return Reconstruction.changed(images)


Recipe = Repair | GradientDenoising | GradientDescent | PartialDiffusion
PRESETS: dict[str, Recipe] = {
    "default": Repair(),
    "paper": GradientDenoising(),
    "gradient_descent": GradientDescent(),
    "partial_diffusion": PartialDiffusion(),
}


RepairMethod = Recipe


def resolve_method(preset, settings):
    import dataclasses

    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    unknown = set(settings) - {field.name for field in dataclasses.fields(preset)}
    if unknown:
        names = ", ".join(field.name for field in dataclasses.fields(preset))
        raise ValueError(f"{type(preset).__name__} has no setting {', '.join(sorted(unknown))}; it has {names}")
    return dataclasses.replace(preset, **settings)


def check_fits_tiles(method, short_side):
    if short_side is not None and not isinstance(method, Repair):
        raise ValueError(
            f"{type(method).__name__} changes whole images at the model's resolution, but this model scores them in tiles: "
            "repair with the default preset, which changes marked regions only"
        )
