"""Training losses of the joint model, L = L_simple + L_vlb + L_f, as pure functions: one for each formula.

All keep the batch: whoever trains takes the mean, whoever validates looks at every image.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class JointLoss:
    """The three terms, each `(batch,)`.

    Args:
        simple: mean squared error of the predicted noise or image.
        vlb: variational bound in bits, which trains the variance only.
        feature: Eq. 10.
        feature_weight: of the feature term in the total, 1 in the paper.
    """

    simple: torch.Tensor
    vlb: torch.Tensor
    feature: torch.Tensor
    feature_weight: float = 1.0

    @property
    def total(self) -> torch.Tensor:
        """Mean over the batch of the weighted sum, a scalar."""
        return (self.simple + self.vlb + self.feature_weight * self.feature).mean()


def squared_error(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of every image, `(batch,)`: L_simple of noise or images, L_f (Eq. 10) of features."""
    return per_image((predicted - target).square())


def kl_divergence(
    x0: torch.Tensor,
    x0_predicted: torch.Tensor,
    v: torch.Tensor,
    x0_coefficient: torch.Tensor,
    log_beta: torch.Tensor,
    log_posterior_variance: torch.Tensor,
) -> torch.Tensor:
    """KL( q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t) ) in bits for every pixel and channel.

    Both means share x_t, so their difference is taken as c (x_0 - x_0_predicted): exact, and free of the cancellation
    that subtracting two nearly equal means has in single precision.

    Args:
        x0, x0_predicted: `(B, C, H, W)` in [-1, 1].
        v: `(B, C, H, W)` in [-1, 1], where the log variance lies between log beta~ and log beta.
        x0_coefficient: c of the posterior mean; like the following one broadcasts against the images.
        log_beta, log_posterior_variance: log beta_t and log beta~_t.
    """
    log_ratio = (v + 1) / 2 * (log_beta - log_posterior_variance)  # log sigma_theta^2 / beta~
    mean_difference = x0_coefficient * (x0 - x0_predicted)
    squared_error = mean_difference.square() * torch.exp(-log_posterior_variance - log_ratio)
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


def per_image(values: torch.Tensor) -> torch.Tensor:
    """Mean of all values of an image, `(batch, ...)` to `(batch,)`."""
    return values.flatten(1).mean(dim=1)
