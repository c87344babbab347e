"""The reverse chain: constants of all its steps, computed once."""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler

from .reverse_step import ReverseStep

PREDICTION_TYPES = ("epsilon", "sample")


def check_scheduler(scheduler: DDPMScheduler) -> None:
    """Refuses a scheduler whose predictions or variances score and losses do not know.

    Raises:
        ValueError: naming the setting.
    """
    # Not every kind of scheduler has both settings.
    prediction_type, variance_type = (scheduler.config.get(name) for name in ("prediction_type", "variance_type"))
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"scheduler: prediction_type {prediction_type!r} is not supported; there are {' and '.join(PREDICTION_TYPES)}"
        )
    if variance_type != "learned_range":
        raise ValueError(
            f"scheduler: variance_type {variance_type!r} is not supported; the model learns the variance: "
            'use DDPMScheduler(variance_type="learned_range")'
        )


class ReverseChain(torch.nn.Module):
    """Constants of every reverse step of a full or respaced chain, as buffers.

    Only the scheduler's configuration is read, so that nothing done to the scheduler later changes the chain, and threads can
    share it.

    Args:
        scheduler: whose configuration says the noise schedule and the spacing of respaced chains.
        num_inference_steps: length of a respaced chain, at least 2; None is the full chain.
        device: of the buffers.

    Raises:
        ValueError: if the scheduler is not supported, or the chain is too short.
    """

    def __init__(
        self, scheduler: DDPMScheduler, num_inference_steps: int | None = None, device: torch.device | str | None = None
    ):
        super().__init__()
        check_scheduler(scheduler)
        full_length = scheduler.config.num_train_timesteps
        if num_inference_steps is not None and not 2 <= num_inference_steps <= full_length:
            raise ValueError(f"num_inference_steps must lie in 2..{full_length}, got {num_inference_steps}")
        with torch.device("cpu"):
            own = DDPMScheduler.from_config(scheduler.config)
            own.set_timesteps(full_length if num_inference_steps is None else num_inference_steps)
        chain = own.timesteps.flip(0)  # (n,), ascending
        # In float64, because differences like 1 - abar lose most of their digits at small t in single precision; from the
        # betas, because the scheduler's own products are in single precision.
        alpha_bar = (1 - own.betas.double()).cumprod(0)[chain]
        alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        beta = 1 - alpha_bar / alpha_bar_prev
        posterior_variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta
        # At the first step beta~ is 0 and has no logarithm: like the paper's code base, take the next step's.
        posterior_variance[0] = posterior_variance[1]
        constants = ReverseStep(
            sqrt_alpha_bar=alpha_bar.sqrt(),
            sqrt_one_minus_alpha_bar=(1 - alpha_bar).sqrt(),
            x0_coefficient=alpha_bar_prev.sqrt() * beta / (1 - alpha_bar),
            xt_coefficient=(1 - beta).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
            log_beta=beta.log(),
            log_posterior_variance=posterior_variance.log(),
            is_first=alpha_bar_prev == 1,
        )
        for name, values in constants._asdict().items():
            self.register_buffer(name, (values if values.dtype == torch.bool else values.float()).to(device))
        # Timesteps off the chain get a position beyond its end, where looking up fails; the second half is for negative ones,
        # which count from the end.
        position = chain.new_full((2 * full_length,), len(chain))
        position[chain] = torch.arange(len(chain), device="cpu")
        self.register_buffer("position", position.to(device))
        self.timesteps: tuple[int, ...] = tuple(chain.flip(0).tolist())

    def step(self, timesteps: torch.Tensor) -> ReverseStep:
        """Constants of the reverse steps from timesteps `(batch,)`, or from one `()` or `(1,)` for all images.

        Raises:
            IndexError: if one is not part of the chain.
        """
        position = self.position[timesteps.reshape(-1)]  # (batch,)
        return ReverseStep(*(getattr(self, name)[position].view(-1, 1, 1, 1) for name in ReverseStep._fields))

    def check_timesteps(self, timesteps: Sequence[int]) -> None:
        """Refuses timesteps, in original units, that are not part of the chain.

        Raises:
            ValueError: naming them.
        """
        off = sorted(set(timesteps) - set(self.timesteps))
        if off:
            raise ValueError(
                f"timesteps {off} are not in the chain of {len(self.timesteps)} steps; use timesteps of that chain, or the "
                "full chain (num_inference_steps=None)"
            )
