"""Conformal rules: what n scores of good parts promise about the next one. Pure functions of numbers and arrays.

With n scores of good images that are exchangeable with that of a new good part (same camera, parts and light, no order in time
that matters), the k-th lowest is exceeded with probability (n + 1 - k) / (n + 1) at most, whatever the distribution of scores
(split conformal prediction, Vovk et al. 2005). This is marginal: the mean over draws of the n images. With one set of them the
long-run rate scatters around it, as Beta(n + 1 - k, k) for continuous scores, which for few images is wide.
"""

import math

import numpy as np

DEFAULT_FALSE_ALARM_RATE = 0.05
STATISTICS_SHARE = 1 / 3  # of the calibration images, behind the statistics that scores are formed with
FEWEST_STATISTICS_SHARE = 1 / 10  # where the thresholds need the images
MOST_STATISTICS_IMAGES = 24  # more hardly change the statistics


def threshold_rank(n: int, false_alarm_rate: float) -> int:
    """k = ceil((n + 1) (1 - rate)): a new score exceeds the k-th lowest of n with probability (n + 1 - k) / (n + 1) at most."""
    return math.ceil((n + 1) * (1 - false_alarm_rate) - 1e-9)


def scores_needed(false_alarm_rate: float) -> int:
    """How many scores behind a threshold guarantee a false-alarm rate: 1 / (n + 1) must not exceed it."""
    return math.ceil(1 / false_alarm_rate - 1e-9) - 1


def smallest_rate(n: int) -> float:
    """The lowest false-alarm rate that n scores can guarantee, 1 / (n + 1)."""
    return 1 / (n + 1)


def default_rate(n: int) -> float:
    """5 %, or, where that is larger, the lowest rate that n scores can guarantee."""
    return max(DEFAULT_FALSE_ALARM_RATE, smallest_rate(n))


def conformal_threshold(scores: np.ndarray, false_alarm_rate: float) -> float:
    """Smallest threshold that a new exchangeable score exceeds with probability at most `false_alarm_rate`.

    With n sorted scores it is the k-th of `threshold_rank`. The probability is over draws of all n + 1 scores.

    Raises:
        ValueError: if there are no scores or too few for the rate, or it is not in (0, 1).
    """
    check_supported(len(scores), false_alarm_rate)
    return float(np.sort(scores)[threshold_rank(len(scores), false_alarm_rate) - 1])


def p_values(calibration_scores: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + #{calibration score >= score}) / (n + 1) of each score: P(p <= a) <= a for a good part and any a.

    Args:
        calibration_scores: `(n,)`, ascending.
        scores: `(m,)`.
    """
    n = len(calibration_scores)
    at_least_as_high = n - np.searchsorted(calibration_scores, scores, side="left")
    return (1 + at_least_as_high) / (n + 1)


def images_behind_thresholds(calibration_images: int, statistics_share: float = STATISTICS_SHARE) -> int:
    """How many of the calibration images are left for thresholds once the statistics have theirs, at least one.

    The statistics get their share: up to a tenth always, beyond it up to 24 images as far as the default rate can spare them.
    """
    for_statistics = _part(calibration_images, statistics_share)
    spare = min(calibration_images - scores_needed(DEFAULT_FALSE_ALARM_RATE), MOST_STATISTICS_IMAGES)
    return calibration_images - max(1, min(for_statistics, max(_part(calibration_images, FEWEST_STATISTICS_SHARE), spare)))


def images_needed(false_alarm_rate: float, statistics_share: float = STATISTICS_SHARE) -> int:
    """How many images to calibrate on for a false-alarm rate, those for the statistics included."""
    for_thresholds = scores_needed(false_alarm_rate)
    total = for_thresholds + 1
    while images_behind_thresholds(total, statistics_share) < for_thresholds:
        total += 1
    return total


def _part(count: int, share: float) -> int:
    return math.floor(count * share + 1e-9)


def check_supported(n: int, false_alarm_rate: float) -> None:
    """Refuses a false-alarm rate that n scores can't guarantee, which is one below 1 / (n + 1).

    Raises:
        ValueError: naming how many images are needed and the smallest rate that is supported.
    """
    if n == 0:
        raise ValueError("no calibration scores: calibrate the pipeline on good images that it was not trained on first")
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must lie between 0 and 1, got {false_alarm_rate}")
    if scores_needed(false_alarm_rate) > n:
        smallest = math.ceil(1e4 * smallest_rate(n)) / 1e4  # rounded up, so that it is supported as written
        raise ValueError(
            f"a false_alarm_rate of {false_alarm_rate:g} needs {scores_needed(false_alarm_rate)} good images behind the "
            f"thresholds, there are {n}: calibrate on {images_needed(false_alarm_rate)} good images (some serve the "
            f"statistics), or ask for the smallest rate that is supported, {smallest:g}"
        )
