"""Eqs. 12 and 13 and the steps of Algorithm 1 as pure functions of images `(batch, 3, height, width)` in [-1, 1].

Conventions, which the paper leaves open and its released code fixes: the direction is the *negative* gradient, scaled to unit
variance for every image, so that it takes the noise's place in a forward diffusion step.
"""

from collections.abc import Callable

import torch

# Images (B, 3, H, W) to squared Mahalanobis distances (B, h, w), differentiable.
Distance = Callable[[torch.Tensor], torch.Tensor]


def mahalanobis_loss(distances: torch.Tensor) -> torch.Tensor:
    """Eq. 12, mean over positions: `(B, h, w)` to `(B,)`."""
    return distances.mean(dim=(1, 2))


def loss_and_gradient(images: torch.Tensor, distance: Distance) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 12 and its gradient with respect to every image: `(B,)` and `(B, 3, H, W)` in float32.

    Works under `torch.no_grad`, leaves no graph behind and no gradient in any parameter.
    """
    with torch.enable_grad():
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
    own, all_pairs = weights.square().sum(), weights.sum().square()
    return float(step_size**2 * (own + correlation * (all_pairs - own)))


def matched_timestep(alphas_cumprod: torch.Tensor, variance: float) -> int:
    """The timestep whose noise level 1 - abar_t is nearest to `variance`: there the UNet expects what the steps added."""
    return int((1 - alphas_cumprod.double() - variance).abs().argmin())
