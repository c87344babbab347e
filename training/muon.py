"""Muon: steps along the momentum of a weight matrix, made orthogonal, so that no direction of it moves faster than others."""

from collections.abc import Callable, Iterable

import torch

# Of odd polynomials, one after the other, that take singular values from (0, 1] to about 1: timm's defaults, after those of
# Jordan et al. (2024).
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
MOMENTUM = 0.95
ADAMW_SIZE = 0.2  # root mean square of AdamW's updates at a learning rate of 1 (Liu et al. 2025)
SMALLEST_NORM = 1e-7


class Muon(torch.optim.AdamW):
    """Muon for some weights, AdamW for the others.

    timm's and torch's multiply matrices in bfloat16 only, which takes a CPU without instructions for it 20 times as long.

    Args:
        matrices: weights of two dimensions or more, matrices of their outputs by all else.
        others: weights that AdamW updates.
        lr, lr_of_others: learning rates; an update of a matrix has the size that AdamW's has at the same rate.
        weight_decay: of all, in units of the learning rate.
        dtype: in which matrices are multiplied.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        lr: float,
        lr_of_others: float,
        weight_decay: float,
        dtype: torch.dtype,
    ):
        groups = [{"params": list(matrices), "lr": lr}, {"params": list(others), "lr": lr_of_others}]
        super().__init__(groups, weight_decay=weight_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all weights that have gradients."""
        matrices = self.param_groups[0]
        moved = [(weight, weight.grad) for weight in matrices["params"] if weight.grad is not None]
        for weight, _ in moved:
            weight.grad = None  # AdamW passes over it
        loss = super().step(closure)
        for weight, gradient in moved:
            weight.grad = gradient
            state = self.state[weight]
            if not state:
                state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}  # AdamW looks for steps as it loads
            state["step"] += 1
            momentum = state["momentum"]
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalized(momentum.flatten(1), self.dtype)
            weight.mul_(1 - matrices["lr"] * matrices["weight_decay"])
            size = ADAMW_SIZE * max(update.shape) ** 0.5
            weight.add_(update.view_as(weight).to(weight.dtype), alpha=-matrices["lr"] * size)
        return loss


def orthogonalized(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """About U V^T of a matrix `(m, n)` = U S V^T, by Newton-Schulz steps in some precision."""
    values = matrix.to(dtype)
    if is_tall := values.shape[0] > values.shape[1]:
        values = values.T
    values = values / values.norm().clamp_min(SMALLEST_NORM)
    for a, b, c in COEFFICIENTS:
        gram = values @ values.T
        values = a * values + (b * gram + c * gram @ gram) @ values
    return values.T if is_tall else values
