"""The UNet in the diffusion process: noising, what it says of the clean image, reverse steps, training losses."""

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler

from . import losses
from .chain import ReverseChain
from .reverse_step import (
    ReverseStep,
    add_noise,
    clamp_to_range,
    model_log_variance,
    noise_between,
    posterior_mean,
    predict_x0,
    prediction_target,
)


class DenoiserOutput(NamedTuple):
    """What the UNet says of the clean image from a noisy one, all float32.

    Args:
        x0: `(B, C, H, W)`, the clean image in [-1, 1].
        v: `(B, C, H, W)` in [-1, 1], the variance of the reverse step between its bounds.
        features: `(B, D, h, w)`, standardised features of the clean image.
    """

    x0: torch.Tensor
    v: torch.Tensor
    features: torch.Tensor


class Denoiser(torch.nn.Module):
    """Noises images and denoises them with a joint UNet along one reverse chain; nothing in it changes after construction.

    Timesteps are integer tensors in original units, `(batch,)`, or `()` or `(1,)` for all images: one graph serves them all.

    Args:
        unet: joint model, or a wrapper of one (for distributed training), called as `unet(xt, timesteps, category)`.
        scheduler: whose configuration says the noise schedule and what the UNet predicts.
        num_inference_steps: length of the respaced chain that reverse steps follow; None is the full one.
        device: of the chain's constants; the UNet stays where it is.

    Raises:
        ValueError: as [`ReverseChain`].
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: DDPMScheduler,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.unet = unet
        self.chain = ReverseChain(scheduler, num_inference_steps, device)
        self.prediction_type: str = scheduler.config.prediction_type

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t of images `(B, C, H, W)`; the noise broadcasts against them."""
        return add_noise(x0, noise, self.chain.step(timesteps))

    def forward(self, xt: torch.Tensor, timesteps: torch.Tensor, category: torch.Tensor | int | None = None) -> DenoiserOutput:
        """What one pass of the UNet says of noisy images `(B, C, H, W)`.

        Args:
            category: of a model of several categories one for all images, or integers `(B,)` or `(1,)`.
        """
        output, features = self._run_unet(xt, timesteps, category)
        prediction, v = output.chunk(2, dim=1)  # (B, C, H, W) each
        x0 = predict_x0(xt, prediction, self.chain.step(timesteps), self.prediction_type)
        return DenoiserOutput(x0, clamp_to_range(v), features)

    def kl_divergence(self, x0: torch.Tensor, prediction: DenoiserOutput, timesteps: torch.Tensor) -> torch.Tensor:
        """KL of the true and the predicted reverse step in bits, `(B, C, H, W)`."""
        return _kl_divergence(x0, prediction.x0, prediction.v, self.chain.step(timesteps))

    def reverse_step(
        self,
        xt: torch.Tensor,
        timesteps: torch.Tensor,
        category: torch.Tensor | int | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x_{t-1} of the chain, `(B, C, H, W)`: the mean of p_theta, or with standard normal `noise` a sample of it."""
        prediction, step = self(xt, timesteps, category), self.chain.step(timesteps)
        mean = posterior_mean(prediction.x0, xt, step)
        if noise is None:
            return mean
        return mean + torch.exp(0.5 * model_log_variance(prediction.v, step)) * noise

    def joint_loss(
        self,
        x0: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        target_features: torch.Tensor,
        category: torch.Tensor | int | None = None,
        feature_weight: float = 1.0,
        corrupted: torch.Tensor | None = None,
    ) -> losses.JointLoss:
        """All training losses from one pass of the UNet, in float32 whatever the autocast type.

        L_vlb trains the variance only: its mean is frozen by stop-gradient (Improved DDPM, Sec. 3.1), its variance channels are
        not clamped, so that they find back into their range. It is the KL divergence of the reverse step; at the chain's first
        step, which has no posterior, the likelihood of the image.

        Args:
            x0, noise: `(B, C, H, W)`, images in [-1, 1] and standard normal noise.
            timesteps: `(B,)`.
            target_features: `(B, D, h, w)`, standardised per channel.
            category: as for [`~Denoiser.forward`].
            feature_weight: of the feature term in the total loss.
            corrupted: `(B, C, H, W)`, what lies under the noise in place of `x0`, which stays what is to be predicted.
        """
        step = self.chain.step(timesteps)
        xt = add_noise(x0 if corrupted is None else corrupted, noise, step)
        if corrupted is not None:  # the noise that leads from x_t to x_0
            noise = noise_between(x0, xt, step)
        output, features = self._run_unet(xt, timesteps, category)
        prediction, v = output.chunk(2, dim=1)
        x0_predicted = predict_x0(xt, prediction.detach(), step, self.prediction_type)
        vlb = _kl_divergence(x0, x0_predicted, v, step)
        # Few batches hold a first step; only on a CPU does asking cost less than computing.
        if x0.device.type != "cpu" or step.is_first.any():
            mean, log_variance = posterior_mean(x0_predicted, xt, step), model_log_variance(v, step)
            vlb = torch.where(step.is_first, losses.discretized_nll(x0, mean, log_variance), vlb)
        return losses.JointLoss(
            simple=losses.squared_error(prediction, prediction_target(x0, noise, self.prediction_type)),
            vlb=losses.per_image(vlb),
            feature=losses.squared_error(features, target_features),
            feature_weight=feature_weight,
        )

    def _run_unet(
        self, xt: torch.Tensor, timesteps: torch.Tensor, category: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output `(B, 2 C, H, W)` and features `(B, D, h, w)` in float32; the UNet may compute in another type."""
        if isinstance(category, int):
            category = torch.full((1,), category, device=xt.device)
        output, features = self.unet(xt.to(self._unet_dtype()), timesteps, category, return_dict=False)
        return output.float(), features.float()

    def _unet_dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype


def _kl_divergence(x0: torch.Tensor, x0_predicted: torch.Tensor, v: torch.Tensor, step: ReverseStep) -> torch.Tensor:
    return losses.kl_divergence(x0, x0_predicted, v, step.x0_coefficient, step.log_beta, step.log_posterior_variance)
