"""The diffusion process from first principles, in float64: products of betas, and posteriors by Bayes' rule."""

from collections.abc import Sequence

import numpy as np
import torch
from diffad.diffusion.reverse_step import ReverseStep
from diffusers import DDPMScheduler

LINEAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # abar of the paper's schedule
FULL = tuple(range(1000))
RESPACED = tuple(np.linspace(0, 999, 250).round().astype(int).tolist())  # the paper's chain of 250 steps


def bayes_posterior(x0, xt, timestep: int, predecessor: int, alpha_bar: np.ndarray = LINEAR):
    """Mean and variance of q(x_s | x_t, x_0) as the product of the Gaussians q(x_s | x_0) and q(x_t | x_s)."""
    abar_t, abar_s = float(alpha_bar[timestep]), float(alpha_bar[predecessor])
    alpha = abar_t / abar_s
    precision = 1 / (1 - abar_s) + alpha / (1 - alpha)
    mean = (abar_s**0.5 * x0 / (1 - abar_s) + alpha**0.5 * xt / (1 - alpha)) / precision
    return mean, 1 / precision


def exact_step(timesteps: Sequence[int], chain: Sequence[int] = FULL, alpha_bar: np.ndarray = LINEAR) -> ReverseStep:
    """What [`ReverseChain.step`] has to return, in float64; the chain ascends."""
    rows = []
    for t in timesteps:
        position, abar = chain.index(t), alpha_bar[t]
        if position == 0:  # its predecessor is the clean image; the variance is the next step's
            variance = bayes_posterior(0, 0, chain[1], chain[0], alpha_bar)[1]
            rows.append((abar**0.5, (1 - abar) ** 0.5, 1.0, 0.0, np.log(1 - abar), np.log(variance), 1.0))
            continue
        predecessor = chain[position - 1]
        of_x0, variance = bayes_posterior(1, 0, t, predecessor, alpha_bar)
        of_xt, _ = bayes_posterior(0, 1, t, predecessor, alpha_bar)
        beta = 1 - abar / alpha_bar[predecessor]
        rows.append((abar**0.5, (1 - abar) ** 0.5, of_x0, of_xt, np.log(beta), np.log(variance), 0.0))
    columns = [torch.tensor(column, dtype=torch.float64).view(-1, 1, 1, 1) for column in zip(*rows, strict=True)]
    return ReverseStep(*columns[:-1], is_first=columns[-1].bool())


def random_images(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def random_normal(*shape: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scheduler_in_float64(**config) -> DDPMScheduler:
    """Lets diffusers' own arithmetic run in double precision."""
    scheduler = DDPMScheduler(**{"variance_type": "learned_range", "timestep_spacing": "linspace", **config})
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler
