"""Gradient descent on normality (Eqs. 12 and 13), and Algorithm 1, which lets the diffusion model clean up after it.

Conventions, which the paper leaves open and its released code fixes: the direction is the *negative* gradient, scaled to unit
variance for every image, so that it takes the noise's place in a forward diffusion step.
"""

from dataclasses import dataclass

import torch

from ..system.autocast import without_autocast
from .context import Distance, OnStep, RepairContext, RepairResult


@dataclass(frozen=True)
class GradientDescent:
    """Plain gradient descent on Eq. 12 (Eq. 13), which corrupts the image after some steps: a baseline of the paper.

    Args:
        num_steps: N.
        step_size: s in [0, 1].
        normalize_gradient: scale every image's gradient to unit variance, as the released code does.

    Raises:
        ValueError: if a setting is out of its range.
    """

    num_steps: int = 500
    step_size: float = 0.02
    normalize_gradient: bool = True

    def __post_init__(self):
        if self.num_steps < 0:
            raise ValueError(f"num_steps must be at least 0, got {self.num_steps}")
        if not 0 <= self.step_size <= 1:
            raise ValueError(f"step_size must lie in 0..1, got {self.step_size}")

    def run(self, images: torch.Tensor, context: RepairContext, on_step: OnStep) -> RepairResult:
        """Repairs images `(B, 3, H, W)` in `num_steps` steps."""
        for _ in range(self.num_steps):
            images = on_step(self.descend(images, context))
        return RepairResult.of_adjusted(images)

    def descend(self, images: torch.Tensor, context: RepairContext) -> torch.Tensor:
        """One step downhill from images `(B, 3, H, W)`."""
        _, gradient = loss_and_gradient(images, context.distance)
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

    def __post_init__(self):
        super().__post_init__()
        if self.denoise_every < 1:
            raise ValueError(f"denoise_every must be at least 1, got {self.denoise_every}")

    def run(self, images: torch.Tensor, context: RepairContext, on_step: OnStep) -> RepairResult:
        """Repairs images `(B, 3, H, W)` in `num_steps` gradient steps and the denoising steps between them.

        Raises:
            ValueError: if the timestep is not in the chain.
        """
        context.check_timesteps((self.timestep,), self.num_inference_steps)
        for i in range(1, self.num_steps + 1):
            images = on_step(self.descend(images, context))
            if i % self.denoise_every == 0:
                images = on_step(self.denoise(images, context, i))
        return RepairResult.of_adjusted(images)

    def denoise(self, images: torch.Tensor, context: RepairContext, draw: int) -> torch.Tensor:
        """One denoising of images `(B, 3, H, W)`, of which no noise but the gradient steps' is taken away.

        Args:
            draw: number of the noise that a stochastic step adds.
        """
        if self.num_inference_steps is None:
            return context.predict_x0(images, self.timestep)
        return context.reverse_step(images, self.timestep, self.num_inference_steps, draw if self.stochastic else None)


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


def gradient_step(images: torch.Tensor, direction: torch.Tensor, step_size: float) -> torch.Tensor:
    """x <- sqrt(1 - s^2) x + s d (Algorithm 1; Eq. 13 with d = -grad L and omega = sqrt(1 - s^2)).

    With d of unit variance this is one forward diffusion step with beta = s^2.
    """
    return (1 - step_size**2) ** 0.5 * images + step_size * direction


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
