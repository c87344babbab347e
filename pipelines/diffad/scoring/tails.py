"""How rare a value is on good parts: a tail probability fitted to their pixels, in decades, as pure functions.

A term's value s becomes -log10 P(S >= s) with S the values of good pixels. Terms of any unit and spread are then alike, and one
whose good pixels have a heavy tail counts little by itself. Up to the 99 % quantile the probability is that of the good pixels,
interpolated between quantiles; beyond it a generalised Pareto distribution follows the excesses (Pickands 1975), fitted by
L-moments (Hosking & Wallis 1987), which are robust where pixels are few or alike. The sum over terms is Fisher's combination of
independent tests, but for a factor. Ours, not the paper's.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

# Shares of good pixels below the knots: the quantiles between which the probability is interpolated. The last is the threshold.
KNOT_SHARES = (0.0, 0.25, 0.5, 0.75, 0.85, 0.9, 0.95, 0.98, 0.99)
LEVELS = tuple(-np.log10(1 - np.array(KNOT_SHARES)))  # decades at the knots
# Of the Pareto's shape: an exponential tail at least, so that no value is impossible, and a finite variance at most.
SHAPE_LIMITS = (1e-3, 0.5)
TINY = float(np.finfo(np.float32).tiny)


class Tail(NamedTuple):
    """Fitted tails of K terms; numpy arrays or tensors.

    Args:
        knots: `(K, len(KNOT_SHARES))`, quantiles of good pixels, ascending.
        scale: `(K,)`, of the excesses over the last knot, positive.
        shape: `(K,)`, within `SHAPE_LIMITS`.
    """

    knots: "np.ndarray | torch.Tensor"
    scale: "np.ndarray | torch.Tensor"
    shape: "np.ndarray | torch.Tensor"


def fit_tail(values: np.ndarray, weights: np.ndarray) -> Tail:
    """Fits the tail of one term, K = 1.

    Args:
        values: `(n,)`, of good pixels.
        weights: `(n,)`, how many pixels each stands for.

    Raises:
        ValueError: if a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("values of good pixels are not finite")
    order = np.argsort(values, kind="stable")
    values, weights = values[order].astype(np.float64), weights[order].astype(np.float64)
    share_below = (np.cumsum(weights) - weights / 2) / weights.sum()
    knots = np.maximum.accumulate(np.interp(KNOT_SHARES, share_below, values))
    beyond = values > knots[-1]
    scale, shape = _fit_excesses(values[beyond] - knots[-1], weights[beyond])
    # Pixels that are all alike have no spread; a tiny one keeps the rest of the formula finite.
    spread = max(np.ptp(knots), abs(knots[-1]), 1e-6)
    return Tail(knots[None], np.array([max(scale, 1e-6 * spread)]), np.array([shape]))


def _fit_excesses(excesses: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Scale and shape of a generalised Pareto distribution by its first two L-moments; `excesses` ascend."""
    if len(excesses) < 2:
        return 0.0, SHAPE_LIMITS[0]
    share_above = 1 - (np.cumsum(weights) - weights / 2) / weights.sum()
    mean, mean_above = np.average(excesses, weights=weights), np.average(excesses * share_above, weights=weights)
    shape = float(np.clip(2 - mean / max(mean - 2 * mean_above, 1e-12), *SHAPE_LIMITS))
    return mean * (1 - shape), shape  # the scale that keeps the mean


def decades(values: "torch.Tensor", tail: Tail) -> "torch.Tensor":
    """-log10 P(S >= s) of values `(B, H, W)`, at least 0, ascending; 2 at the 99 % quantile of good pixels.

    Args:
        tail: of one term, of tensors that lead with 1, or with B where the images of a batch have tails of their own.
    """
    result = values.new_zeros(())
    knots = tail.knots[:, :, None, None]  # (1 or B, knots, 1, 1)
    widths = (knots[:, 1:] - knots[:, :-1]).clamp_min(TINY)
    for i in range(len(KNOT_SHARES) - 1):
        result = result + (LEVELS[i + 1] - LEVELS[i]) * ((values - knots[:, i]) / widths[:, i]).clamp(0, 1)
    scale, shape = tail.scale[:, None, None], tail.shape[:, None, None]
    excess = (values - knots[:, -1]).clamp_min(0) / scale
    return result + (shape * excess).log1p() / (shape * np.log(10))


def decades_of_array(values: np.ndarray, tail: Tail) -> np.ndarray:
    """The same of an array of any shape, for what runs without torch; `tail` of one term, K = 1."""
    knots, scale, shape = (np.asarray(part, dtype=np.float64)[0] for part in tail)
    excess = np.maximum(values - knots[-1], 0) / scale
    return np.interp(values, knots, LEVELS) + np.log1p(shape * excess) / (shape * np.log(10))
