"""Conformal rules: thresholds by brute force, realised rates, p-values; and no torch in them."""

import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from diffad.scoring.conformal import (
    check_supported,
    conformal_threshold,
    default_rate,
    images_behind_thresholds,
    images_needed,
    p_values,
    scores_needed,
    smallest_rate,
    threshold_rank,
)

RATES = (0.01, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 0.9, 0.99)


def exact(rate: float) -> Fraction:
    return Fraction(rate).limit_denominator(1000)


def score_pool(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return {
        "distinct": rng.normal(size=count),
        "ties": rng.integers(0, 5, size=count).astype(float),
        "all equal": np.full(count, 2.5),
    }[kind]


def leave_one_out(pool: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """Every split into calibration scores and one new score: under exchangeability each is equally likely."""
    for i in range(len(pool)):
        yield np.delete(pool, i), pool[i]


def test_they_need_no_torch():
    code = "import sys, diffad.scoring.conformal; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "diffad.scoring.conformal" in modules and "numpy" in modules
    assert not {"torch", "diffusers", "scipy"} & set(modules)


# Thresholds


def brute_force_threshold(scores: np.ndarray, rate: Fraction) -> float | None:
    """The lowest calibration score above which a new score, equally likely at each of n + 1 ranks, lies with at most `rate`."""
    for candidate in sorted(scores):
        if Fraction(len(scores) + 1 - int((scores <= candidate).sum()), len(scores) + 1) <= rate:
            return candidate
    return None


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal"])
@pytest.mark.parametrize("rate", RATES)
def test_threshold_matches_brute_force(rate, kind):
    for count in range(1, 120):
        scores = score_pool(kind, count)
        expected = brute_force_threshold(scores, exact(rate))
        if expected is None:
            with pytest.raises(ValueError, match=f"there are {count}"):
                conformal_threshold(scores, rate)
        else:
            assert conformal_threshold(scores, rate) == expected


@pytest.mark.parametrize("rate", RATES)
def test_rank_is_the_lowest_that_a_new_score_exceeds_rarely_enough(rate):
    for count in range(1, 120):
        ranks = [k for k in range(1, count + 1) if Fraction(count + 1 - k, count + 1) <= exact(rate)]
        assert threshold_rank(count, rate) == (ranks[0] if ranks else count + 1)
        assert (scores_needed(rate) <= count) == bool(ranks)


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal"])
@pytest.mark.parametrize("count", [20, 57, 100])
def test_realised_false_alarm_rate_keeps_the_level(count, kind):
    pool = score_pool(kind, count)
    for rate in (0.05, 0.1, 0.25, 0.5, 0.9):
        alarms = sum(new > conformal_threshold(good, rate) for good, new in leave_one_out(pool))
        assert Fraction(int(alarms), count) <= exact(rate)
        if kind == "distinct":  # and no further below it than it must
            assert alarms == int(exact(rate) * count)


def test_random_splits_keep_the_level_on_average():
    rng = np.random.default_rng(0)
    realised = []
    for _ in range(400):
        scores = rng.standard_t(df=3, size=49 + 200)
        realised.append((scores[49:] > conformal_threshold(scores[:49], 0.1)).mean())
    assert 0.09 < np.mean(realised) < 0.11


@pytest.mark.parametrize(
    ("rate", "needed", "total"), [(0.5, 1, 2), (0.1, 9, 10), (0.05, 19, 21), (0.01, 99, 123), (0.03, 33, 49)]
)
def test_unsupported_rate_is_refused_with_the_number_needed_and_the_smallest_rate(rate, needed, total):
    scores = np.arange(needed, dtype=float)
    assert conformal_threshold(scores, rate) == needed - 1
    assert (scores_needed(rate), images_needed(rate)) == (needed, total)
    if needed == 1:
        return
    with pytest.raises(ValueError, match=f"{rate:g} needs {needed} .*there are {needed - 1}: calibrate on {total} ") as error:
        conformal_threshold(scores[:-1], rate)
    smallest = float(str(error.value).rsplit(" ", 1)[1])
    assert smallest == pytest.approx(smallest_rate(needed - 1), abs=1e-4)
    check_supported(needed - 1, smallest)


@pytest.mark.parametrize("rate", [0.5, 0.3, 0.1, 0.05, 0.02, 0.01])
def test_the_number_of_images_needed_is_the_smallest_that_leaves_enough_for_thresholds(rate):
    needed = images_needed(rate)
    check_supported(images_behind_thresholds(needed), rate)
    for fewer in range(2, needed):
        with pytest.raises(ValueError, match="needs"):
            check_supported(images_behind_thresholds(fewer), rate)


@pytest.mark.parametrize(("images", "behind"), [(2, 1), (4, 3), (19, 18), (20, 18), (21, 19), (114, 103)])
def test_one_image_in_ten_and_at_least_one_gives_the_statistics(images, behind):
    assert images_behind_thresholds(images, statistics_share=0.1) == behind


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5])
def test_statistics_get_their_share_where_the_default_rate_spares_it_but_never_many_images(share):
    """By definition: of all numbers of images for the statistics that are allowed, the largest."""
    for images in range(2, 400):
        allowed = {1} | {k for k in range(2, images) if k <= images / 10 + 1e-9}  # a tenth always, as ever
        allowed |= {k for k in range(2, 25) if images - k >= 19}  # up to 24 where 19 are left, as 5 % need
        most = max(k for k in allowed if k == 1 or k <= images * share + 1e-9)
        assert images_behind_thresholds(images, share) == images - most


def test_a_third_gives_the_statistics_by_default():
    behind = {2: 1, 20: 18, 21: 19, 24: 19, 30: 20, 36: 24, 114: 90, 240: 216, 300: 270}
    assert {n: images_behind_thresholds(n) for n in behind} == behind


@pytest.mark.parametrize(("n", "rate"), [(1, 1 / 2), (4, 1 / 5), (18, 1 / 19), (19, 0.05), (500, 0.05)])
def test_default_rate_is_5_percent_or_the_smallest_supported_one(n, rate):
    assert default_rate(n) == pytest.approx(rate, rel=1e-12)
    assert conformal_threshold(np.arange(n, dtype=float), default_rate(n)) == threshold_rank(n, rate) - 1


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5, float("nan")])
def test_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match="false_alarm_rate must lie between 0 and 1"):
        conformal_threshold(np.arange(10.0), rate)


def test_no_scores_are_refused():
    with pytest.raises(ValueError, match="calibrate"):
        conformal_threshold(np.array([]), 0.05)


def test_order_of_the_calibration_scores_does_not_matter():
    scores = score_pool("distinct", 30)
    assert conformal_threshold(scores, 0.2) == conformal_threshold(np.random.default_rng(1).permutation(scores), 0.2)


# p-values


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal"])
@pytest.mark.parametrize("count", [2, 20, 41])
def test_p_values_of_good_parts_are_valid_at_every_level(count, kind):
    pool = score_pool(kind, count)
    p = np.array([p_values(np.sort(good), np.array([new]))[0] for good, new in leave_one_out(pool)])
    for level in np.append(p, [0.01, 0.05, 0.5, 1.0]):
        assert (p <= level).mean() <= level + 1e-12
    if kind == "distinct":
        np.testing.assert_allclose(np.sort(p), np.arange(1, count + 1) / count)


def test_p_values_follow_the_formula():
    good = np.sort(score_pool("ties", 25))
    scores = np.array([-1.0, 0.0, 0.5, 2.0, 4.0, 9.0])
    expected = [(1 + sum(bool(n >= s) for n in good)) / 26 for s in scores]
    np.testing.assert_allclose(p_values(good, scores), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["distinct", "ties"])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25, 0.5])
def test_threshold_and_p_value_agree(rate, kind):
    good = np.sort(score_pool(kind, 39))
    scores = np.concatenate([good, np.linspace(-4, 6, 101)])
    np.testing.assert_array_equal(scores > conformal_threshold(good, rate), p_values(good, scores) <= rate + 1e-12)
