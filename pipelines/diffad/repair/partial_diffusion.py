"""Partial diffusion: the image is noised and sampled back, so that what the model does not know is lost on the way."""

from dataclasses import dataclass

import torch

from .context import OnStep, RepairContext, RepairResult


@dataclass(frozen=True)
class PartialDiffusion:
    """Noises to a timestep and denoises back by the reverse chain: a baseline.

    Args:
        timestep: where the noise ends; the nearest one of the chain is taken.
        num_inference_steps: length of the respaced chain.
        stochastic: sample the reverse steps (DDPM) instead of taking their means.
    """

    timestep: int = 200
    num_inference_steps: int = 100
    stochastic: bool = False

    def run(self, images: torch.Tensor, context: RepairContext, on_step: OnStep) -> RepairResult:
        """Repairs images `(B, 3, H, W)` in as many steps as the respaced chain has from the timestep on.

        Raises:
            ValueError: if the model knows no such noise level.
        """
        if not 0 <= self.timestep < len(context.betas):
            raise ValueError(f"timestep must lie in 0..{len(context.betas) - 1}, the model's noise levels, got {self.timestep}")
        timesteps = context.chain_timesteps(self.num_inference_steps)  # descending
        start = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - self.timestep))
        images = context.add_noise(images, timesteps[start])
        for t in timesteps[start:]:
            # The last step, to the clean image, is its mean in any case.
            noise = context.draw_noise(images, t) if self.stochastic and t > 0 else None
            images = on_step(context.reverse_step(images, t, self.num_inference_steps, noise))
        return RepairResult.of_adjusted(images)
