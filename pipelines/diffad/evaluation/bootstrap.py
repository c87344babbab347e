"""Confidence intervals of detection and localization metrics: a bootstrap over images.

Every metric is a function of how often each score occurs on normal and on defective images (or pixels). So scores are counted
once per image, and a resample of images is a weighted sum of their counts: a thousand resamples of ten million pixels cost
one matrix product.
"""

import numpy as np

from .counts import ScoreCounts
from .sweep import sweep, sweep_metrics

RESAMPLES = 1000
RESAMPLES_AT_ONCE = 100


def confidence_intervals(
    counts: ScoreCounts, is_defective: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of [`~diffad.evaluation.sweep.sweep_metrics`] over resamples of the images.

    Good and defective images are drawn with replacement from their own kind, so that every resample has as many of each as
    the data. An interval covers the choice of test images, not that of training images or seed.

    Args:
        counts: of N images, or of their pixels, each image apart.
        is_defective: `(N,)`, True for a defective image.
        level: share of resamples inside an interval.
    """
    is_defective = np.asarray(is_defective, dtype=bool)
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, len(is_defective)))
    for kind in (is_defective, ~is_defective):
        weights[:, kind] = rng.multinomial(kind.sum(), np.full(kind.sum(), 1 / kind.sum()), size=resamples)
    # Defective images may have an empty mask; a resample of nothing else has no curve.
    weights = weights[weights @ counts.defective.sum(axis=1) > 0]
    parts = [
        sweep_metrics(sweep(counts, weights[start : start + RESAMPLES_AT_ONCE]))
        for start in range(0, len(weights), RESAMPLES_AT_ONCE)
    ]
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: tuple(np.quantile(np.concatenate([part[name] for part in parts]), tails).tolist()) for name in parts[0]}
