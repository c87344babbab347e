"""Chooses a score by a few known defects, as pure functions: candidates, what each is worth, and whether one is better.

A candidate is worth the mean over the defective images of what it makes of each, among good images: so that every image can be
left out in turn. The best is drawn towards the present score, by a penalty that a single image would outweigh less easily than
many, and it is taken only if images that did not choose it gain by it beyond chance.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from scipy.special import ndtr
from scipy.stats import t as student

from ..scoring.statistics import PRIOR_IMAGES
from .counts import region_shares
from .sweep import FPR_LIMITS

MOST_TERMS = 3  # of the candidates that leave the present score
AREAS = (0.001, 0.003, 0.01, 0.03)  # shares of the pixels whose mean is a term's score
PENALTY = 0.1  # for sharing nothing with the present score, if there were one defective image
CONFIDENCE = 0.95  # one-sided, of the gain over left-out images
MARGIN = 0.01  # below which a gain is not worth a change


@dataclass(frozen=True)
class ScoreCandidate:
    """Settings that are tried.

    Args:
        weights: of score terms, positive.
        area: share of the pixels that are a term's highest.
    """

    weights: Mapping[str, float]
    area: float

    @property
    def shares(self) -> dict[str, float]:
        """The weights, divided by their sum."""
        total = sum(self.weights.values())
        return {term: weight / total for term, weight in self.weights.items()}

    def distance(self, other: "ScoreCandidate") -> float:
        """How much of the score differs: the part of the weights, and half a part for each tenfold area."""
        mine, others = self.shares, other.shares
        of_weights = sum(abs(mine.get(term, 0) - others.get(term, 0)) for term in mine | others) / 2
        return of_weights + abs(np.log10(self.area / other.area)) / 2


@dataclass(frozen=True)
class ScoreChoice:
    """What was chosen of some candidates.

    Args:
        chosen: the candidate: the present one where no other is better beyond chance.
        is_changed: whether it is another one.
        before: mean worth of the present candidate, in [0, 1].
        gain, standard_error: of the worth of images that the choice was made without.
    """

    chosen: ScoreCandidate
    is_changed: bool
    before: float
    gain: float
    standard_error: float


def candidates(present: ScoreCandidate, terms: Sequence[str], areas: Sequence[float] = ()) -> list[ScoreCandidate]:
    """The present one first; then it with one term left out, added or doubled, and few terms of equal weight.

    Args:
        terms: that there are.
        areas: tried besides the present one.
    """
    weights = present.weights
    usual = sum(weights.values()) / len(weights)
    tried = [dict(weights)]
    for term in terms:
        if term in weights and len(weights) > 1:
            tried.append({name: weight for name, weight in weights.items() if name != term})
        tried.append({**weights, term: 2 * weights[term] if term in weights else usual})
    tried += [dict.fromkeys(chosen, usual) for count in range(1, MOST_TERMS + 1) for chosen in combinations(terms, count)]
    distinct: dict[tuple, ScoreCandidate] = {}
    for area, of_area in product(dict.fromkeys([present.area, *areas]), tried):
        candidate = ScoreCandidate(of_area, area)
        distinct.setdefault((area, tuple(sorted((t, round(share, 9)) for t, share in candidate.shares.items()))), candidate)
    return list(distinct.values())


def localization_worth(anomaly_map: np.ndarray, mask: np.ndarray, good_pixels: np.ndarray) -> float:
    """Mean of pixel AP and AUPRO of one defective image among good pixels: how sharply, and how completely, it is marked.

    Args:
        anomaly_map: `(H, W)`.
        mask: `(H, W)` bool, with a defective pixel.
        good_pixels: `(n,)`, ascending, of the maps of good images; the image's own normal pixels join them.
    """
    normal, defective = np.sort(anomaly_map[~mask]), anomaly_map[mask]
    # Normal pixels at least as high as each defective one, and higher ones.
    at_least, above = (
        sum(len(pixels) - np.searchsorted(pixels, defective, side=side) for pixels in (normal, good_pixels))
        for side in ("left", "right")
    )
    found = len(defective) - np.searchsorted(np.sort(defective), defective, side="left")
    average_precision = np.mean(found / (found + at_least))
    fpr = (at_least + above) / 2 / (len(normal) + len(good_pixels))  # where scores are equal the curve is a straight line
    shares = region_shares(mask)
    overlap = np.average(np.clip(1 - fpr / FPR_LIMITS[0], 0, 1), weights=shares)
    return float((average_precision + overlap) / 2)


def detection_worth(defective: np.ndarray, good: np.ndarray) -> np.ndarray:
    """P(a defective image scores higher than a good one) of all pairs `(N, G)`: image AUROC, smoothed by the good ones' spread.

    Few pairs are seldom in wrong order, so that AUROC itself says little; farther apart than a few spreads counts no more.

    Args:
        defective, good: scores `(N,)` and `(G,)`, standardised by the good ones.
    """
    squares = np.square(good - good.mean()).sum()  # the prior spread is 1, because scores are standardised
    spread = np.sqrt((PRIOR_IMAGES + squares) / (PRIOR_IMAGES + len(good) - 1))
    return ndtr((defective[:, None] - good[None]) / spread)


def choose(tried: Sequence[ScoreCandidate], worth: Callable[[ScoreCandidate], np.ndarray]) -> ScoreChoice:
    """Chooses by the mean worth less the penalty, and keeps the present candidate unless the gain is beyond chance.

    Args:
        tried: the present candidate first.
        worth: of a candidate: `(N,)` for N >= 2 defective images, or `(N, G)` for pairs with G good ones. In the second case
            the standard error counts both as drawn (DeLong et al. 1988).
    """
    worths = np.stack([worth(candidate) for candidate in tried])  # (C, N[, G])
    of_images = worths if worths.ndim == 2 else worths.mean(axis=2)
    count = of_images.shape[1]
    distances = np.array([candidate.distance(tried[0]) for candidate in tried])

    def best(images: np.ndarray) -> int:
        return int(np.argmax(of_images[:, images].mean(axis=1) - PENALTY * distances / len(images)))

    everything = np.arange(count)
    gains = np.stack([worths[best(np.delete(everything, i)), i] - worths[0, i] for i in everything])  # (N[, G])
    gain, standard_error = float(gains.mean()), np.sqrt(sum(_variance_of_mean(gains, axis) for axis in range(gains.ndim)))
    limit = max(MARGIN, student.ppf(CONFIDENCE, count - 1) * standard_error)
    index = best(everything) if gain > limit else 0
    return ScoreChoice(tried[index], index > 0, float(of_images[0].mean()), gain, float(standard_error))


def _variance_of_mean(gains: np.ndarray, axis: int) -> float:
    """That part of the variance of the mean gain which the images along an axis bring; infinite for a single one."""
    means = gains if gains.ndim == 1 else gains.mean(axis=1 - axis)
    return means.var(ddof=1) / len(means) if len(means) > 1 else np.inf
