"""Training losses of the joint model, each a mean over the batch's pixels: L = L_simple + L_vlb + L_f."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .chain import (
    ChainStep,
    discretized_nll,
    kl_divergence,
    model_log_variance,
    posterior_mean,
    predict_x0,
    prediction_target,
)


@dataclass(frozen=True)
class JointLoss:
    """The three terms, scalars; `total` weighs the feature term by `feature_weight` (1 in the paper)."""

    simple: torch.Tensor
    vlb: torch.Tensor
    feature: torch.Tensor
    feature_weight: float = 1.0

    @property
    def total(self) -> torch.Tensor:
        return self.simple + self.vlb + self.feature_weight * self.feature


def simple_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L_simple: mean squared error of the predicted noise or image."""
    return F.mse_loss(prediction, target)


def vlb_loss(
    x0: torch.Tensor,
    xt: torch.Tensor,
    prediction: torch.Tensor,
    v: torch.Tensor,
    step: ChainStep,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    """L_vlb in bits: trains the variance only, the mean is frozen by stop-gradient (Improved DDPM, Sec. 3.1).

    The KL divergence of the reverse step; at the chain's first step, which has no posterior, the likelihood of the image.
    """
    x0_predicted = predict_x0(xt, prediction.detach(), step, prediction_type)
    kl = kl_divergence(x0, x0_predicted, v, step)
    if not step.is_first.any():
        return kl.mean()
    nll = discretized_nll(x0, posterior_mean(x0_predicted, xt, step), model_log_variance(v, step))
    return torch.where(step.is_first, nll, kl).mean()


def feature_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L_f (Eq. 10): mean squared error between features rebuilt from x_t and the extractor's features of x_0."""
    return F.mse_loss(predicted, target)


def joint_loss(
    x0: torch.Tensor,
    xt: torch.Tensor,
    noise: torch.Tensor,
    target_features: torch.Tensor,
    model_output: torch.Tensor,
    predicted_features: torch.Tensor,
    step: ChainStep,
    feature_weight: float = 1.0,
    prediction_type: str = "epsilon",
) -> JointLoss:
    """All terms from one forward pass of the joint UNet; computed in float32 whatever the autocast type.

    Args:
        x0, xt, noise: `(B, C, H, W)`, the image in [-1, 1], its noisy version and the noise.
        target_features, predicted_features: `(B, D, h, w)`, standardised per channel.
        model_output: `(B, 2 C, H, W)`, predicted noise or image, then the variance channels.
        step: constants of each entry's reverse step, on the images' device.
        prediction_type: the scheduler's, `epsilon` or `sample`.
    """
    prediction, v = model_output.float().chunk(2, dim=1)
    return JointLoss(
        simple=simple_loss(prediction, prediction_target(x0, noise, prediction_type)),
        vlb=vlb_loss(x0, xt, prediction, v, step, prediction_type),
        feature=feature_loss(predicted_features.float(), target_features),
        feature_weight=feature_weight,
    )
