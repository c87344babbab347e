"""Gradient descent on normality (Eqs. 12 and 13), and Algorithm 1, which lets the diffusion model clean up after it.

The paper leaves sign and scale of g in Algorithm 1 open. Here g is the *negative* gradient, as in Eq. 13 and the released code:
with the printed plus sign, the other one would climb. As in the released code it has unit variance for every image, so that it
takes the noise's place in a forward diffusion step. Without `normalize_gradient` it is left as it is. Eq. 12 is the mean over
positions; over the sum instead, a gradient left as it is would be as many times larger as there are positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..system.autocast import without_autocast
from .context import Distance, OnStep, RepairContext, RepairResult

SCHEDULES = ("constant", "betas")


@dataclass(frozen=True)
class _GradientSteps:
    """What plain and denoised gradient descent have in common."""

    num_steps: int = 500
    step_size: float = 0.02
    normalize_gradient: bool = True

    def __post_init__(self):
        if self.num_steps < 0:
            raise ValueError(f"num_steps must be at least 0, got {self.num_steps}")

    def _check_step_size(self):
        if not 0 <= self.step_size <= 1:
            raise ValueError(f"step_size must lie in 0..1, got {self.step_size}")

    def _direction(self, images: torch.Tensor, context: RepairContext) -> torch.Tensor:
        """Downhill from images `(B, 3, H, W)`."""
        _, gradient = loss_and_gradient(images, context.distance)
        return unit_direction(gradient) if self.normalize_gradient else -gradient


@dataclass(frozen=True)
class GradientDescent(_GradientSteps):
    """Plain gradient descent on Eq. 12 (Eq. 13), which corrupts the image after some steps: a baseline of the paper.

    Args:
        num_steps: N.
        step_size: s, at least 0; at most 1 where it sets omega.
        normalize_gradient: scale every image's gradient to unit variance, as the released code does; else Eq. 13 as printed.
        omega: weight decay factor in [0, 1], by which the image is multiplied in every step; None is sqrt(1 - s^2).

    Raises:
        ValueError: if a setting is out of its range.
    """

    omega: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.omega is None:
            self._check_step_size()
        elif not (0 <= self.omega <= 1 and self.step_size >= 0):
            raise ValueError(f"omega must lie in 0..1 and step_size be at least 0, got {self.omega} and {self.step_size}")

    def run(self, images: torch.Tensor, context: RepairContext, on_step: OnStep) -> RepairResult:
        """Repairs images `(B, 3, H, W)` in `num_steps` steps."""
        for _ in range(self.num_steps):
            images = on_step(gradient_step(images, self._direction(images, context), self.step_size, self.omega))
        return RepairResult.of_adjusted(images)


@dataclass(frozen=True)
class GradientDenoising(_GradientSteps):
    """Algorithm 1: every `denoise_every`-th gradient step is followed by a denoising one. Defaults are the released code's.

    As printed it is `GradientDenoising(timestep=None, stochastic=True, schedule="betas")`. The paper says neither over which
    part of a noise schedule its beta_t run nor at which timestep the model denoises. What these two settings do is our choice.

    Args:
        num_steps: N.
        step_size: s in [0, 1]; s^2 is the mean of betahat_t.
        normalize_gradient: as of [`GradientDescent`].
        denoise_every: N_d.
        timestep: noise level at which the UNet denoises, in original units. None is the level that the image has by then, as
            [`denoising_timesteps`] derives it for directions of unit variance.
        num_inference_steps: length of the respaced chain of which one reverse step is taken; None denoises completely.
        stochastic: draw from p_theta, with the learned variance, instead of taking its mean.
        schedule: `constant`, betahat_t = s^2, or `betas`, betahat_t = s^2 beta_t, with beta_t the model's own noise schedule,
            stretched over the N steps and divided by its mean.

    Raises:
        ValueError: if a setting is out of its range, or there is no such schedule.
    """

    denoise_every: int = 5
    timestep: int | None = 32
    num_inference_steps: int | None = 250
    stochastic: bool = False
    schedule: Literal["constant", "betas"] = "constant"

    def __post_init__(self):
        super().__post_init__()
        self._check_step_size()
        if self.denoise_every < 1:
            raise ValueError(f"denoise_every must be at least 1, got {self.denoise_every}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; there are {', '.join(SCHEDULES)}")
        if self.timestep is None and not self.normalize_gradient:
            raise ValueError("timestep=None is derived for normalize_gradient=True: name a timestep")

    def run(self, images: torch.Tensor, context: RepairContext, on_step: OnStep) -> RepairResult:
        """Repairs images `(B, 3, H, W)` in `num_steps` gradient steps and the denoising steps between them.

        Raises:
            ValueError: if the timestep is not in the chain, or step sizes exceed 1.
        """
        step_sizes = self.step_sizes(context.betas)
        timesteps = self.timesteps(step_sizes, context)
        for i, step_size in enumerate(step_sizes, start=1):
            images = on_step(gradient_step(images, self._direction(images, context), step_size))
            if i % self.denoise_every == 0:
                images = on_step(self.denoise(images, timesteps[i // self.denoise_every - 1], context, draw=i))
        return RepairResult.of_adjusted(images)

    def step_sizes(self, betas: torch.Tensor) -> list[float]:
        """sqrt(betahat_t) of all N gradient steps.

        Args:
            betas: `(T,)`, noise schedule of the model.

        Raises:
            ValueError: if one exceeds 1.
        """
        if self.schedule == "constant":
            return [self.step_size] * self.num_steps
        stretched = betas[torch.linspace(0, len(betas) - 1, self.num_steps, dtype=torch.float64).round().long()]  # (N,)
        sizes = (self.step_size * (stretched / stretched.mean()).sqrt()).tolist()
        if max(sizes, default=0) > 1:
            raise ValueError(f"step_size {self.step_size} is too large: the schedule takes it to {max(sizes):.2f}, beyond 1")
        return sizes

    def timesteps(self, step_sizes: Sequence[float], context: RepairContext) -> list[int]:
        """Timestep of every denoising step.

        Args:
            step_sizes: sqrt(betahat_t) of all N gradient steps.

        Raises:
            ValueError: if the one given is not in the chain.
        """
        if self.timestep is not None:
            context.check_timesteps((self.timestep,), self.num_inference_steps)
            return [self.timestep] * (self.num_steps // self.denoise_every)
        chain = context.chain_timesteps(self.num_inference_steps)
        complete = self.num_inference_steps is None
        return denoising_timesteps(step_sizes, self.denoise_every, (1 - context.betas).cumprod(0), chain, complete)

    def denoise(self, images: torch.Tensor, timestep: int, context: RepairContext, draw: int) -> torch.Tensor:
        """One denoising of images `(B, 3, H, W)`.

        Args:
            draw: number of the noise that a stochastic step adds.
        """
        if self.num_inference_steps is None:
            return context.predict_x0(images, timestep)
        noise = context.draw_noise(images, draw) if self.stochastic else None
        return context.reverse_step(images, timestep, self.num_inference_steps, noise)


def mahalanobis_loss(distances: torch.Tensor) -> torch.Tensor:
    """Eq. 12, mean over positions: `(B, h, w)` to `(B,)`."""
    return distances.mean(dim=(1, 2))


def loss_and_gradient(images: torch.Tensor, distance: Distance) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 12 and its gradient with respect to every image: `(B,)` and `(B, 3, H, W)` in float32.

    Works under `torch.no_grad` and autocast, leaves no graph behind and no gradient in any parameter.
    """
    # The way back, too: autocast would lower the precision of its matrix products.
    with torch.enable_grad(), without_autocast(images.device.type):
        variable = images.detach().float().requires_grad_()
        loss = mahalanobis_loss(distance(variable))  # (B,)
        # Images don't meet in the sum, so each gets its own gradient.
        (gradient,) = torch.autograd.grad(loss.sum(), variable)
    return loss.detach(), gradient


def unit_direction(gradient: torch.Tensor) -> torch.Tensor:
    """-gradient / std(gradient) per image `(B, 3, H, W)`: downhill, with the unit variance of noise; zero where it vanishes."""
    std = gradient.std(dim=(1, 2, 3), keepdim=True)
    return -gradient / torch.where(std > 0, std, torch.ones_like(std))


def gradient_step(images: torch.Tensor, direction: torch.Tensor, step_size: float, omega: float | None = None) -> torch.Tensor:
    """x <- omega x + s d: Eq. 13 with d = -grad L, and, where omega is None and thereby sqrt(1 - s^2), Algorithm 1.

    With that omega and d of unit variance this is one forward diffusion step with beta = s^2.
    """
    return ((1 - step_size**2) ** 0.5 if omega is None else omega) * images + step_size * direction


def added_variance(step_size: float, num_steps: int, correlation: float) -> float:
    """Variance of what `num_steps` gradient steps with unit-variance directions put on the image.

    Unrolled, x_n = w^n x_0 + s sum_i w^(n-i) d_i with w = sqrt(1 - s^2). `correlation` is that of any two directions: 0 gives
    1 - (1 - s^2)^n as in n forward diffusion steps, 1 nearly (n s)^2.
    """
    weights = (1 - step_size**2) ** (torch.arange(num_steps, dtype=torch.float64) / 2)
    variances = weights.square().sum()  # of every direction alone
    all_pairs = weights.sum().square()
    return float(step_size**2 * (variances + correlation * (all_pairs - variances)))


def matched_timestep(alphas_cumprod: torch.Tensor, variance: float) -> int:
    """The timestep whose noise level 1 - abar_t is nearest to `variance`: there the UNet expects what the steps added."""
    return int((1 - alphas_cumprod.double() - variance).abs().argmin())


def denoising_timesteps(
    step_sizes: Sequence[float], denoise_every: int, alphas_cumprod: torch.Tensor, chain: Sequence[int], complete: bool = False
) -> list[int]:
    """Timestep of the chain at which each denoising step of Algorithm 1 finds the noise that the image has by then.

    Directions between two denoising steps are almost uncorrelated, so gradient steps are forward diffusion steps: the variance
    v of the noise goes to (1 - s_t^2) v + s_t^2 from 0. The denoising step is taken where 1 - abar_t is nearest to v. If drawn
    by a model that knows the clean image, it leaves v' + alpha (v' / (1 - abar_t))^2 (v - (1 - abar_t)), where v' is
    1 - abar of the chain's next timestep: v' itself where the chain has the very level. As v' is not 0, the timestep rises
    until a denoising step takes away what N_d gradient steps add. Means instead of draws leave less.

    Args:
        step_sizes: s_t of all gradient steps.
        denoise_every: N_d.
        alphas_cumprod: `(T,)`.
        chain: descending timesteps of the chain of reverse steps.
        complete: denoising steps leave a clean image wherever they start.
    """
    abar = alphas_cumprod[list(chain)]  # (n,)
    abar_next = torch.ones_like(abar) if complete else torch.cat([abar[1:], abar.new_ones(1)])
    variance, timesteps = 0.0, []
    for i, step_size in enumerate(step_sizes, start=1):
        variance = (1 - step_size**2) * variance + step_size**2
        if i % denoise_every == 0:
            k = matched_timestep(abar, variance)
            timesteps.append(chain[k])
            level, left = 1 - float(abar[k]), 1 - float(abar_next[k])
            variance = left + float(abar[k] / abar_next[k]) * (left / level) ** 2 * (variance - level)
    return timesteps
