"""The law of ranks among fixed calibration scores, against counting all orders."""

import itertools
from collections import Counter

import numpy as np
import pytest
from diffad.monitoring.urn import (
    closest_start,
    gap_index,
    group_of_gap,
    group_sizes,
    normal_tilt,
    tie_breaker,
    tie_breakers,
    unspent,
    urn_probabilities,
)
from scipy.integrate import quad
from scipy.stats import norm


def urn_probability(gaps: list[int], sizes: np.ndarray) -> float:
    """Of a sequence, one factor after the other."""
    counts, probability = np.zeros(len(sizes)), 1.0
    for gap in gaps:
        probability *= urn_probabilities(sizes, counts)[gap]
        counts[gap] += 1
    return probability


def test_gaps_of_all_orders_follow_the_urn():
    n, t = 3, 3
    seen = Counter()
    for order in itertools.permutations(range(n + t)):
        calibration, stream = np.sort(order[:n]), order[n:]
        seen[tuple(gap_index(calibration, np.zeros(n), score, 0.5) for score in stream)] += 1
    total = sum(seen.values())
    for gaps in itertools.product(range(n + 1), repeat=t):
        assert seen[gaps] / total == pytest.approx(urn_probability(gaps, np.ones(n + 1)), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_parts_below_the_kth_score_follow_the_urn_of_k_gaps_whatever_the_others_do(k):
    n, t = 3, 4
    of_labels: dict[tuple, Counter] = {}
    for order in itertools.permutations(range(n + t)):
        calibration, stream = np.sort(order[:n]), order[n:]
        gaps = [gap_index(calibration, np.zeros(n), score, 0.5) for score in stream]
        labels = tuple(gap < k for gap in gaps)
        of_labels.setdefault(labels, Counter())[tuple(gap for gap in gaps if gap < k)] += 1
    assert len(of_labels) == 2**t
    for labels, seen in of_labels.items():
        for gaps in itertools.product(range(k), repeat=sum(labels)):
            assert seen[gaps] / sum(seen.values()) == pytest.approx(urn_probability(gaps, np.ones(k)), rel=1e-12)


def test_groups_of_gaps_follow_the_urn_of_their_sizes():
    sizes = np.array([2.0, 1.0])
    groups = group_of_gap(sizes)
    for order in itertools.product(range(2), repeat=3):
        total = sum(
            urn_probability(gaps, np.ones(3))
            for gaps in itertools.product(range(3), repeat=3)
            if tuple(groups[list(gaps)]) == order
        )
        assert total == pytest.approx(urn_probability(order, sizes), rel=1e-12)


def test_equal_scores_follow_the_urn_by_their_tie_breakers():
    """Scores of two values only; the law of two parts' gaps over many seeds."""
    rng, seen, draws = np.random.default_rng(0), Counter(), 20_000
    for seed in range(draws):
        calibration, parts = np.sort(rng.integers(0, 2, size=2)).astype(float), rng.integers(0, 2, size=2)
        breakers = tie_breakers(2, seed)
        seen[tuple(gap_index(calibration, breakers, part, tie_breaker(i, seed)) for i, part in enumerate(parts))] += 1
    for gaps in itertools.product(range(3), repeat=2):
        expected = urn_probability(gaps, np.ones(3))
        assert abs(seen[gaps] / draws - expected) < 4 * np.sqrt(expected / draws)


def test_tie_breakers_are_functions_of_their_arguments():
    assert np.array_equal(tie_breakers(5, 3), tie_breakers(5, 3)) and not np.array_equal(tie_breakers(5, 3), tie_breakers(5, 4))
    assert len({tie_breaker(part, seed) for part in range(3) for seed in range(3)}) == 9


@pytest.mark.parametrize("gaps", [2, 3, 20, 51, 201, 1000])
def test_groups_hold_all_gaps(gaps):
    sizes = group_sizes(gaps)
    assert sizes.sum() == gaps and (sizes > 0).all() and len(group_of_gap(sizes)) == gaps


def test_a_tilt_is_a_ratio_of_masses():
    sizes = np.array([3.0, 5.0, 2.0])
    tilt = normal_tilt(sizes, 0.7, 1.3)
    cuts = norm.ppf([0, 0.3, 0.8, 1])
    masses = [quad(lambda x: norm.pdf(x, 0.7, 1.3), low, high)[0] for low, high in itertools.pairwise(cuts)]
    np.testing.assert_allclose(tilt, masses / (sizes / 10), rtol=1e-7)
    assert (tilt * sizes / 10).sum() == pytest.approx(1)


def test_the_prior_of_a_change_is_spent_slowly_and_never_twice():
    left = unspent(np.arange(0, 1_000_000, 1000))
    assert left[0] == 1 and (np.diff(left) < 0).all() and left[-1] > 0.05


def test_kept_starts_stay_spread_out():
    starts = [0]
    for now in range(10, 10_000, 10):
        if len(starts) == 8:
            del starts[closest_start(starts, now) + 1]
        starts.append(now)
    ages = now - np.array(starts[:-1])
    assert starts[0] == 0 and (ages[:-1] / ages[1:] < 8).all()
