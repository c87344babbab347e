"""What the ranks of production scores among n fixed calibration scores obey while nothing has changed. Pure functions.

n calibration scores cut the line into n + 1 gaps. If they are exchangeable with all production scores (and ties are broken at
random), the unknown masses of the gaps are jointly Dirichlet(1, ..., 1) and production falls into them independently, given the
masses. With the masses integrated out, the gap of the next part is known exactly: (1 + earlier parts in it) / (n + 1 + earlier
parts), a Polya urn (Gazin, Blanchard and Roquain 2024, Transductive conformal inference with adaptive scores, Theorem 2.1 and
appendix A). So the calibration set's own error is part of this law, and a likelihood ratio against it is a test martingale over
the joint draw of calibration set and production. Groups of neighbouring gaps obey the same urn, started with their numbers of
gaps. So do the parts at or below the k-th lowest calibration score, in the k gaps there, whatever the others do: parts of a
Dirichlet vector divided by their sum are Dirichlet again and independent of the sum.
"""

import numpy as np
from scipy.stats import norm

# Shares of production below the cuts between groups of gaps: finer towards high scores, where changes show first.
CUTS = (0.05, 0.15, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
SPENDING_SCALE = 100.0  # parts, in the prior of the time of a change


def tie_breakers(count: int, seed: int) -> np.ndarray:
    """`(count,)` numbers in [0, 1) that order equal calibration scores, drawn once; a later part's is [`tie_breaker`]."""
    return np.random.default_rng((seed, 0)).random(count)


def tie_breaker(part: int, seed: int) -> float:
    """The number in [0, 1) that orders a part's score among equal calibration scores; depends on nothing but its arguments.

    Args:
        part: index of the part from 0 on.
    """
    return float(np.random.default_rng((seed, 1, part)).random())


def gap_index(calibration_scores: np.ndarray, breakers: np.ndarray, score: float, breaker: float) -> int:
    """How many calibration scores lie below a score, in 0..n; of equal ones those with a lower tie breaker.

    Args:
        calibration_scores: `(n,)`, ascending.
        breakers: `(n,)`, of [`tie_breakers`].
    """
    first, last = (int(np.searchsorted(calibration_scores, score, side)) for side in ("left", "right"))
    return first + int((breakers[first:last] < breaker).sum())


def group_sizes(gaps: int) -> np.ndarray:
    """`(K,)` positive numbers of gaps in each group of neighbouring gaps, about at [`CUTS`]; they add up to `gaps`."""
    edges = np.unique(np.concatenate([[0], np.round(np.array(CUTS) * gaps), [gaps]]))
    return np.diff(edges)


def group_of_gap(sizes: np.ndarray) -> np.ndarray:
    """`(gaps,)`: the group that each gap belongs to."""
    return np.repeat(np.arange(len(sizes)), sizes.astype(int))


def urn_probabilities(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(..., K)`: probability of each group for the next part, given the parts so far.

    Args:
        sizes: `(K,)`, gaps of each group.
        counts: `(..., K)`, earlier parts in each.
    """
    contents = sizes + counts
    return contents / contents.sum(axis=-1, keepdims=True)


def normal_tilt(sizes: np.ndarray, shift: float, scale: float = 1.0) -> np.ndarray:
    """`(K,)`: how many times as likely each group becomes if scores move, had good scores a normal distribution.

    The groups' expected masses are those of a standard normal distribution; the tilt is the ratio of the masses of one with
    another mean and standard deviation to them. It depends on ranks alone, so that it suits any monotone transform of normal
    scores.

    Args:
        sizes: `(K,)`, gaps of each group.
        shift: mean after the change, in standard deviations.
        scale: standard deviation after the change, relative to that before.
    """
    cuts = norm.ppf(np.concatenate([[0.0], np.cumsum(sizes) / sizes.sum()]))
    masses = np.diff(norm.cdf((cuts - shift) / scale))
    return np.maximum(masses / (sizes / sizes.sum()), 1e-6)  # never 0: one surprising part must not end a bet for good


def unspent(parts: np.ndarray | float) -> np.ndarray | float:
    """Prior probability that a change that is not there from the start comes after so many parts; falls from 1 to 0.

    It falls like the reciprocal of a logarithm, so that a change after a year costs little more evidence than one after a day.
    """
    return 1 / (1 + np.log1p(np.asarray(parts) / SPENDING_SCALE))


def closest_start(starts: list[int], now: int) -> int:
    """Which of several ascending times to unite with the next one, so that ages stay about evenly spaced on a log scale.

    Args:
        starts: ascending, at least 3, of which the last is the newest and stays.
        now: at least the last one.
    """
    ages = now - np.array(starts[:-1], dtype=float)
    return int(np.argmax((ages[1:] + 1) / (ages[:-1] + 1)))
