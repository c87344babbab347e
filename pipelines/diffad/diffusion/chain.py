"""The diffusion chain as plain numbers and the Gaussians of one reverse step (METHOD: DDPM with a learned variance range).

Every function works on tensors of any float type and of shape `(batch, channels, height, width)`; per-timestep numbers
are `ChainStep` fields that broadcast against them.
"""

import math
from dataclasses import dataclass, fields

import torch
from diffusers import DDPMScheduler


@dataclass(frozen=True)
class ChainStep:
    """Constants of the reverse step from a timestep to its predecessor in a full or respaced chain.

    Each is a tensor of shape `(batch, 1, 1, 1)`, computed in float64: differences like 1 - abar lose most of their digits
    at small t when they are taken in single precision.
    """

    sqrt_alpha_bar: torch.Tensor
    sqrt_one_minus_alpha_bar: torch.Tensor
    x0_coefficient: torch.Tensor  # of the posterior mean
    xt_coefficient: torch.Tensor
    log_beta: torch.Tensor
    log_posterior_variance: torch.Tensor  # log beta~
    is_first: torch.Tensor  # bool: the predecessor is the clean image

    def to(self, like: torch.Tensor) -> "ChainStep":
        """The same constants on the device and in the float type of `like`."""
        constants = (getattr(self, field.name) for field in fields(self))
        return ChainStep(*(c.to(like.device) if c.dtype == torch.bool else c.to(like) for c in constants))


def chain_step(scheduler: DDPMScheduler, timesteps: torch.Tensor) -> ChainStep:
    """Reads the constants of one reverse step per batch entry.

    Args:
        scheduler: full chain as constructed, or respaced by `scheduler.set_timesteps(n)`.
        timesteps: `(batch,)` integers in original units, 0 .. num_train_timesteps - 1.

    Raises:
        ValueError: if a timestep is not part of the scheduler's (respaced) chain.
    """
    timesteps = timesteps.cpu()
    chain = scheduler.timesteps.cpu().flip(0)  # ascending
    position = torch.searchsorted(chain, timesteps)
    found = chain[position.clamp(max=len(chain) - 1)] == timesteps
    if not found.all():
        raise ValueError(
            f"timesteps {timesteps[~found].unique().tolist()} are not in the chain of {len(chain)} steps; use timesteps "
            "of that chain, or the full chain (num_inference_steps=None)"
        )
    # From the betas, because the scheduler's own products are in single precision.
    alpha_bar = (1 - scheduler.betas.double().cpu()).cumprod(0)[chain]
    alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    beta = 1 - alpha_bar / alpha_bar_prev
    posterior_variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta
    # At the first step beta~ is 0 and has no logarithm: like the paper's code base, take the next step's.
    posterior_variance[0] = posterior_variance[1]
    constants = (
        alpha_bar.sqrt(),
        (1 - alpha_bar).sqrt(),
        alpha_bar_prev.sqrt() * beta / (1 - alpha_bar),
        (1 - beta).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
        beta.log(),
        posterior_variance.log(),
        alpha_bar_prev == 1,
    )
    return ChainStep(*(constant[position].view(-1, 1, 1, 1) for constant in constants))


def add_noise(x0: torch.Tensor, noise: torch.Tensor, step: ChainStep) -> torch.Tensor:
    """Forward process: x_t ~ N(sqrt(abar_t) x_0, (1 - abar_t) I)."""
    return step.sqrt_alpha_bar * x0 + step.sqrt_one_minus_alpha_bar * noise


def prediction_target(x0: torch.Tensor, noise: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """What the model learns to predict from x_t: the noise (`epsilon`, the paper) or the clean image (`sample`).

    Predicting noise, a network has to copy it exactly: an error is multiplied by sqrt(1 - abar_t) / sqrt(abar_t) in the image,
    2 at t = 400. A small network that works on folded pixels can't, and rebuilds the image itself far better.
    """
    return noise if prediction_type == "epsilon" else x0


def predict_x0(xt: torch.Tensor, prediction: torch.Tensor, step: ChainStep, prediction_type: str = "epsilon") -> torch.Tensor:
    """Clean image that the prediction implies, clamped to the image range [-1, 1]."""
    if prediction_type == "epsilon":
        prediction = (xt - step.sqrt_one_minus_alpha_bar * prediction) / step.sqrt_alpha_bar
    return prediction.clamp(-1, 1)


def posterior_mean(x0: torch.Tensor, xt: torch.Tensor, step: ChainStep) -> torch.Tensor:
    """Mean of q(x_{t-1} | x_t, x_0); with a predicted x_0, mean of p_theta(x_{t-1} | x_t)."""
    return step.x0_coefficient * x0 + step.xt_coefficient * xt


def clamp_to_range(v: torch.Tensor) -> torch.Tensor:
    """The variance channels held to the range [-1, 1] they interpolate over.

    A trained network leaves it where its predicted image is off by more than the step's noise: it then explains its own error
    as variance, and the KL of a defect falls below that of a good part.
    """
    return v.clamp(-1, 1)


def model_log_variance(v: torch.Tensor, step: ChainStep) -> torch.Tensor:
    """log sigma_theta^2 = u log beta + (1 - u) log beta~ with u = (v + 1) / 2 (learned range)."""
    u = (v + 1) / 2
    return u * step.log_beta + (1 - u) * step.log_posterior_variance


def kl_divergence(x0: torch.Tensor, x0_predicted: torch.Tensor, v: torch.Tensor, step: ChainStep) -> torch.Tensor:
    """KL( q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t) ) in bits for every pixel and channel.

    Both means share x_t, so their difference is taken as c (x_0 - x_0_predicted): exact, and free of the cancellation
    that subtracting two nearly equal means has in single precision.
    """
    log_ratio = (v + 1) / 2 * (step.log_beta - step.log_posterior_variance)  # log sigma_theta^2 / beta~
    mean_difference = step.x0_coefficient * (x0 - x0_predicted)
    squared_error = mean_difference.square() * torch.exp(-step.log_posterior_variance - log_ratio)
    return 0.5 * (log_ratio + torch.expm1(-log_ratio) + squared_error) / math.log(2)


def discretized_nll(x0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """-log2 p(x_0 | x_1) of an 8-bit image under a Gaussian, per pixel and channel (decoder term L_0 of DDPM).

    `x0` holds the 256 grey levels in [-1, 1]; each level takes the probability mass of its bin, the outer bins reach to
    infinity.
    """
    scale = torch.exp(-0.5 * log_variance) / math.sqrt(2)
    outer = x0.abs() > 0.999
    # Seen from the nearer tail, where erfc keeps its digits; the outer bins have one finite edge.
    distance = torch.where(outer, (x0 - mean) * x0.sign(), (x0 - mean).abs())
    inner_edge = torch.erfc((distance - 1 / 255) * scale)
    outer_edge = torch.where(outer, torch.zeros_like(inner_edge), torch.erfc((distance + 1 / 255) * scale))
    return 1 - torch.log2((inner_edge - outer_edge).clamp_min(1e-30))
