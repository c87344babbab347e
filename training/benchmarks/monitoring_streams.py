"""Simulated streams of scores for the benchmark of the monitor, and two rivals of its test of scores."""

from collections.abc import Callable, Sequence

import numpy as np
from diffad.monitoring.drift_monitor import EMBEDDINGS, REJECTS, SCORES, shares_of_level
from diffad.monitoring.embedding_test import EmbeddingTest
from diffad.monitoring.reject_test import RejectTest
from diffad.monitoring.score_test import START_PRIOR, ScoreTest
from diffad.monitoring.urn import CUTS, group_of_gap, unspent
from diffad.scoring.conformal import threshold_rank
from scipy.stats import beta, norm

NEVER = np.inf
TILTS = (0.5, 1.0, 2.0)  # shifts that the rivals bet on, in standard deviations


def draw(n: int, streams: int, parts: int, shift: float, change: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A calibration set `(S, n)`, ascending, of every stream, and normal scores `(S, parts)`, moved after `change`."""
    rng = np.random.default_rng(seed)
    calibration = np.sort(rng.normal(size=(streams, n)), axis=1)
    scores = rng.normal(size=(streams, parts))
    scores[:, change:] += shift
    return calibration, scores


def gaps_of(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`(S, parts)`: how many scores of its own calibration set lie below each score."""
    return np.stack([np.searchsorted(below, of_stream) for below, of_stream in zip(calibration, scores, strict=True)])


def first_alarms(update: Callable[[np.ndarray], np.ndarray], columns: np.ndarray, log_limit: float) -> np.ndarray:
    """`(S,)`: the number of parts at which each stream's evidence first reaches a limit; infinite where it never does.

    Args:
        update: takes `(S,)` observations and returns `(S,)` logarithms of evidence.
        columns: `(S, parts)` observations.
    """
    alarms = np.full(len(columns), NEVER)
    for part in range(columns.shape[1]):
        reached = update(columns[:, part]) >= log_limit
        alarms[reached & np.isinf(alarms)] = part + 1
    return alarms


def monitor_alarms(
    calibration: np.ndarray, scores: np.ndarray, false_alarm_rate: float, level: float, with_embeddings: bool = False
) -> dict[str, np.ndarray]:
    """`(S,)` numbers of parts at the first alarm of the tests of scores and of the reject rate.

    The test of scores takes the parts called good alone; streams with fewer of them than others are not read beyond their end.

    Args:
        with_embeddings: whether a part of the level is left for [`embedding_alarms`].
    """
    streams, n = calibration.shape
    rank = threshold_rank(n, false_alarm_rate)
    gaps = gaps_of(calibration, scores)
    rejected = gaps >= rank
    limits = {name: -np.log(share * level) for name, share in shares_of_level(with_embeddings).items()}
    alarms = {REJECTS: first_alarms(RejectTest(n, rank, 0.0, streams).update, rejected, limits[REJECTS])}
    test = ScoreTest(rank, streams)
    order = np.argsort(rejected, axis=1, kind="stable")  # the good parts first, in their order
    good = (~rejected).sum(axis=1)
    groups = group_of_gap(test.sizes)[np.minimum(np.take_along_axis(gaps, order, axis=1), rank - 1)[:, : good.max()]]
    of_good = first_alarms(test.update, groups, limits[SCORES])
    of_good[of_good > good] = NEVER
    index = np.where(np.isinf(of_good), 1, of_good).astype(int) - 1
    position = np.take_along_axis(order, index[:, None], axis=1)[:, 0] + 1.0
    alarms[SCORES] = np.where(np.isinf(of_good), NEVER, position)
    return alarms


def embedding_alarms(
    references: Sequence[np.ndarray], features: Sequence[np.ndarray], rejected: np.ndarray, level: float
) -> np.ndarray:
    """`(S,)` numbers of parts at the first alarm of the test of embeddings, at the level of the whole monitor.

    Args:
        references: of each stream `(r, D)`.
        features: of each stream `(parts, D)`.
        rejected: `(S, parts)` bool; these parts are not among those that are compared.
    """
    alarms = np.full(len(rejected), NEVER)
    share = shares_of_level(with_embeddings=True)[EMBEDDINGS]
    for stream, (reference, of_parts) in enumerate(zip(references, features, strict=True)):
        test = EmbeddingTest(reference, share * level, seed=stream)
        for part in np.flatnonzero(~rejected[stream]):
            test.add(of_parts[part])
            look = test.due_look()
            if look is not None and test.take(look, look.p_value()):
                alarms[stream] = part + 1
                break
    return alarms


def urn_alarms(calibration: np.ndarray, scores: np.ndarray, level: float) -> np.ndarray:
    """`(S,)` first alarms of the test of scores alone, on all parts, at the whole level."""
    test = ScoreTest(calibration.shape[1] + 1, len(calibration))
    return first_alarms(test.update, group_of_gap(test.sizes)[gaps_of(calibration, scores)], -np.log(level))


def exceedance_alarms(calibration: np.ndarray, scores: np.ndarray, level: float, with_bound: bool) -> np.ndarray:
    """`(S,)` first alarms of bets on exceedances of fixed calibration scores, the rivals of the urn.

    For each of some order statistics it bets that more parts lie above it, or below, than a probability u. With the bound u is
    the upper limit of the unknown probability, exact by its Beta law, at half of the level for all order statistics and both
    sides together; the bets have the other half. Without it u is the expected probability, as for a conformal martingale on a
    fixed calibration set, which is not valid.
    """
    streams, n = calibration.shape
    ranks = np.unique(np.clip(np.round(np.array(CUTS) * (n + 1)), 1, n)).astype(int)
    share = level / 2 / (2 * len(ranks))
    above = beta.ppf(1 - share, n + 1 - ranks, ranks) if with_bound else (n + 1 - ranks) / (n + 1)
    below = beta.ppf(1 - share, ranks, n + 1 - ranks) if with_bound else ranks / (n + 1)
    u = np.concatenate([above, below])[:, None]  # (2 E, 1)
    moved = 1 - norm.cdf(norm.ppf(1 - u) - np.array(TILTS))  # (2 E, tilts)
    hit, miss = np.log(moved / u), np.log((1 - moved) / (1 - u))
    log_wealth = np.full((streams, *moved.shape), np.log(START_PRIOR / moved.size))
    parts = 0

    def update(gaps: np.ndarray) -> np.ndarray:
        nonlocal log_wealth, parts
        spent = (1 - START_PRIOR) * (unspent(parts) - unspent(parts + 1)) / moved.size
        exceeded = gaps[:, None] >= ranks
        hits = np.concatenate([exceeded, ~exceeded], axis=1)[:, :, None]
        log_wealth = np.logaddexp(log_wealth, np.log(spent)) + np.where(hits, hit, miss)
        parts += 1
        return np.log(np.exp(np.minimum(log_wealth, 600)).sum(axis=(1, 2)) + (1 - START_PRIOR) * unspent(parts))

    return first_alarms(update, gaps_of(calibration, scores), -np.log(level / 2 if with_bound else level))
