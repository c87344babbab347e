"""The Gaussians of one step of the diffusion process (METHOD of DDPM with a learned range of variances).

Pure functions of tensors `(batch, channels, height, width)` of any float type, and of a [`ReverseStep`] that broadcasts against
them.
"""

from typing import NamedTuple

import torch


class ReverseStep(NamedTuple):
    """Constants of the reverse step from a timestep to its predecessor in a full or respaced chain.

    Each is a tensor `(batch, 1, 1, 1)`, or `(1, 1, 1, 1)` for one timestep of all images.
    """

    sqrt_alpha_bar: torch.Tensor
    sqrt_one_minus_alpha_bar: torch.Tensor
    x0_coefficient: torch.Tensor  # of the posterior mean
    xt_coefficient: torch.Tensor
    log_beta: torch.Tensor
    log_posterior_variance: torch.Tensor  # log beta~
    is_first: torch.Tensor  # bool: the predecessor is the clean image


def add_noise(x0: torch.Tensor, noise: torch.Tensor, step: ReverseStep) -> torch.Tensor:
    """Forward process: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
    return step.sqrt_alpha_bar * x0 + step.sqrt_one_minus_alpha_bar * noise


def noise_between(x0: torch.Tensor, xt: torch.Tensor, step: ReverseStep) -> torch.Tensor:
    """The noise that leads from x_0 to x_t; the inverse of [`add_noise`]."""
    return (xt - step.sqrt_alpha_bar * x0) / step.sqrt_one_minus_alpha_bar


def prediction_target(x0: torch.Tensor, noise: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """What the model learns to predict from x_t: the noise (`epsilon`, the paper) or the clean image (`sample`).

    Predicting noise, a network has to copy it exactly: an error is multiplied by sqrt(1 - abar_t) / sqrt(abar_t) in the image,
    2 at t = 400. A small network that works on folded pixels can't, and rebuilds the image itself far better.
    """
    return noise if prediction_type == "epsilon" else x0


def predict_x0(xt: torch.Tensor, prediction: torch.Tensor, step: ReverseStep, prediction_type: str) -> torch.Tensor:
    """Clean image that the prediction implies, clamped to the image range [-1, 1]."""
    if prediction_type == "epsilon":
        prediction = (xt - step.sqrt_one_minus_alpha_bar * prediction) / step.sqrt_alpha_bar
    return prediction.clamp(-1, 1)


def posterior_mean(x0: torch.Tensor, xt: torch.Tensor, step: ReverseStep) -> torch.Tensor:
    """Mean of q(x_{t-1} | x_t, x_0); with a predicted x_0, mean of p_theta(x_{t-1} | x_t)."""
    return step.x0_coefficient * x0 + step.xt_coefficient * xt


def clamp_to_range(v: torch.Tensor) -> torch.Tensor:
    """The variance channels held to the range [-1, 1] they interpolate over.

    A trained network leaves it where its predicted image is off by more than the step's noise: it then explains its own error
    as variance, and the KL of a defect falls below that of a good part.
    """
    return v.clamp(-1, 1)


def model_log_variance(v: torch.Tensor, step: ReverseStep) -> torch.Tensor:
    """log sigma_theta^2 = u log beta + (1 - u) log beta~ with u = (v + 1) / 2 (learned range)."""
    u = (v + 1) / 2
    return u * step.log_beta + (1 - u) * step.log_posterior_variance
