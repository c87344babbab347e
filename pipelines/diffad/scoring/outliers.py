"""Which of some good images are unlike the others: leave-one-out distances at several scales, one number for each image.

The Gaussian of each position says what varies there, so that distances of all positions compare. The logarithm of the mean of
an image's highest distances is close to normally distributed over good images; median and median absolute deviation standardise
it, which a few defects hardly move. An image's number is the mean over the scales, or that of the distances to the nearest
other images if that is higher: what either of them finds unlike the others is so. It is standardised once more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm

from ..models.leave_one_out import left_out_distances

HIGHEST_SHARE = 0.005  # of the positions, which an image's number is the mean of
FALSE_RATE = 0.05  # of folders of normally distributed numbers without a defect in which any image is called an outlier
ROUNDS = 5  # of fitting to what is not called an outlier
MOST_LEFT_OUT = 0.3  # of the images: beyond it there is no telling who is unlike whom
LEAST_DISTANCE = 1e-6  # squared; of an image to its copy it is 0, which has no logarithm
LEAST_SPREAD = 1e-3  # of numbers that are logarithms or have unit variance; where most images have copies they hardly differ
NORMAL_MAD = 1.4826  # standard deviations of a normal distribution in one median absolute deviation


@dataclass(frozen=True)
class ScaleVectors:
    """Features of n images at one scale.

    Args:
        vectors: `(n, P, D)` of any float type, channels of about unit variance.
        regularization: of their Gaussians.
    """

    vectors: torch.Tensor
    regularization: float


@dataclass(frozen=True)
class Outliers:
    """How unlike the others each of n images is.

    Args:
        scores: `(n,)`, about standard normal for good images.
        is_outlier: bool `(n,)`, above `limit`.
        limit: that any of n standard normal numbers exceeds with probability `FALSE_RATE`.
        distances: `(n, P)` by scale, squared Mahalanobis distances to the other images; `neighbors` to the nearest ones.
    """

    scores: np.ndarray
    is_outlier: np.ndarray
    limit: float
    distances: Mapping[str, np.ndarray]

    @property
    def order(self) -> np.ndarray:
        """Indices of the images, the most unlike first."""
        return np.argsort(-self.scores, kind="stable")


def find_outliers(
    scales: Mapping[str, ScaleVectors],
    groups: Sequence[int] | None = None,
    rounds: int = ROUNDS,
    neighbors: np.ndarray | None = None,
) -> Outliers:
    """Ranks images and says which are clear outliers.

    Defects among the images widen the Gaussians and hide each other. So the outliers are taken out of the Gaussians, and all
    images measured anew, until the same ones are found (trimmed refits).

    Args:
        scales: features by the scale's name.
        groups: `(n,)` of images that are alike and are left out together; None leaves out one at a time.
        rounds: of this at most.
        neighbors: `(n, P)` squared distances to the nearest other images, in which outliers stay; None goes without.

    Raises:
        ValueError: with fewer than four images, or groups so large that fewer than two are left.
    """
    n = len(next(iter(scales.values())).vectors)
    if n < 4:
        raise ValueError(f"{n} image(s): at least 4 are needed to tell which is unlike the others")
    limit = outlier_limit(n)
    is_outlier = np.zeros(n, dtype=bool)
    for _ in range(rounds):
        is_fitted = torch.from_numpy(~is_outlier)
        distances = {
            name: left_out_distances(scale.vectors, scale.regularization, groups, is_fitted).numpy()
            for name, scale in scales.items()
        }
        of_scales = [robust_scores(highest(values), ~is_outlier) for values in distances.values()]
        scores = robust_scores(np.mean(of_scales, axis=0), ~is_outlier)
        if neighbors is not None:
            distances["neighbors"] = neighbors
            scores = robust_scores(np.maximum(scores, robust_scores(highest(neighbors), ~is_outlier)), ~is_outlier)
        found = scores > limit
        found[np.argsort(-scores)[int(MOST_LEFT_OUT * n) :]] = False
        if (found == is_outlier).all():
            break
        is_outlier = found
    return Outliers(scores, is_outlier, limit, distances)


def highest(distances: np.ndarray) -> np.ndarray:
    """Logarithm `(n,)` of the mean of the highest of distances `(n, P)` of each image."""
    count = max(1, round(HIGHEST_SHARE * distances.shape[1]))
    return np.log(np.maximum(np.partition(distances, -count, axis=1)[:, -count:].mean(axis=1), LEAST_DISTANCE))


def robust_scores(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values `(n,)` minus the median and over the median absolute deviation of those that count, as standard deviations."""
    median = np.median(values[counts])
    spread = NORMAL_MAD * np.median(np.abs(values[counts] - median))
    return (values - median) / max(spread, LEAST_SPREAD)


def outlier_limit(n: int) -> float:
    """What the highest of n independent standard normal numbers exceeds with probability `FALSE_RATE` at most (Bonferroni)."""
    return float(norm.isf(FALSE_RATE / n))
