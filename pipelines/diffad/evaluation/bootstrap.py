"""Confidence intervals of detection and localization metrics: a bootstrap over images.

Every metric is a function of how often each score occurs on normal and on defective images (or pixels). So scores are counted
once per image, and a resample of images is a weighted sum of their counts: a thousand resamples of ten million pixels cost
one matrix product. Image scores are counted exactly. Pixel scores fall into bins between quantiles of normal and of
defective pixels, which moves a metric by less than 0.001.
"""

from dataclasses import dataclass

import numpy as np

from .metrics import area_under_curve, label_regions

PIXEL_QUANTILES = 1000  # of each class
RESAMPLES = 1000
RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class ScoreCounts:
    """How often every score occurs in each of N images, in K bins from the highest score to the lowest.

    Args:
        normal, defective: `(N, K)` counts of normal and of defective images or pixels.
        overlap: `(N, K)`, for pixels: the share of a defective region that lies in the bin, summed over the image's regions.
    """

    normal: np.ndarray
    defective: np.ndarray
    overlap: np.ndarray | None = None


@dataclass(frozen=True)
class Sweep:
    """Rates at every threshold from the highest to the lowest for W weightings of the images, each `(W, K + 1)`.

    The first threshold selects nothing, with precision 1. `pro` is the mean per-region overlap, or None.
    """

    fpr: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    pro: np.ndarray | None


def count_images(scores: np.ndarray, labels: np.ndarray) -> ScoreCounts:
    """Counts of image scores `(N,)` with their truth `(N,)`: one bin for every distinct score."""
    distinct, bins = np.unique(-np.asarray(scores), return_inverse=True)
    counts = np.zeros((len(bins), len(distinct)), dtype=np.float32)
    counts[np.arange(len(bins)), bins] = 1
    labels = np.asarray(labels, dtype=bool)[:, None]
    return ScoreCounts(normal=counts * ~labels, defective=counts * labels)


def count_pixels(maps: np.ndarray, masks: np.ndarray) -> ScoreCounts:
    """Counts of the pixels of anomaly maps `(N, H, W)` with their truth `(N, H, W)`; one image is binned at a time."""
    quantiles = np.linspace(0, 1, PIXEL_QUANTILES)
    # Edges are scores that occur ("lower"): with fewer defective pixels than quantiles, AP is exact.
    edges = np.unique(np.concatenate([np.quantile(maps[mask], quantiles, method="lower") for mask in (~masks, masks)]))
    bins = len(edges) + 1
    normal, defective, overlap = (np.zeros((len(maps), bins), dtype=np.float32) for _ in range(3))
    for i, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        place = len(edges) - np.searchsorted(edges, anomaly_map.ravel(), side="right")
        mask = mask.ravel()
        normal[i] = np.bincount(place[~mask], minlength=bins)
        if mask.any():
            regions, _ = label_regions(masks[i][None])
            weights = 1 / np.maximum(np.bincount(regions.ravel()), 1)  # no background, no pixels of region 0
            defective[i] = np.bincount(place[mask], minlength=bins)
            overlap[i] = np.bincount(place[mask], weights=weights[regions.ravel()[mask]], minlength=bins)
    return ScoreCounts(normal, defective, overlap)


def sweep(counts: ScoreCounts, weights: np.ndarray | None = None) -> Sweep:
    """Runs the threshold through all bins, with every image counted as often as `weights` `(W, N)` say; None is once."""
    if weights is None:
        weights = np.ones((1, len(counts.normal)))

    def cumulated(per_image: np.ndarray) -> np.ndarray:
        return np.pad(np.cumsum(weights @ per_image, axis=1), ((0, 0), (1, 0)))

    normal, defective = cumulated(counts.normal), cumulated(counts.defective)
    selected, positives = normal + defective, defective[:, -1:]
    pro = None if counts.overlap is None else cumulated(counts.overlap)
    return Sweep(
        fpr=normal / normal[:, -1:],
        recall=defective / positives,
        precision=np.divide(defective, selected, out=np.ones_like(selected), where=selected > 0),
        f1=2 * defective / (selected + positives),
        pro=None if pro is None else pro / pro[:, -1:],
    )


def sweep_metrics(curves: Sweep, fpr_limits: tuple[float, ...] = (0.3, 0.05)) -> dict[str, np.ndarray]:
    """`auroc`, `ap` and `f1_max`, and `aupro_<limit in percent>` where regions were counted; each `(W,)`."""
    metrics = {
        "auroc": np.trapezoid(curves.recall, curves.fpr, axis=1),
        "ap": np.sum(np.diff(curves.recall, axis=1) * curves.precision[:, 1:], axis=1),
        "f1_max": curves.f1.max(axis=1),
    }
    if curves.pro is not None:
        for limit in fpr_limits:
            areas = [area_under_curve(x, y, limit) for x, y in zip(curves.fpr, curves.pro, strict=True)]
            metrics[f"aupro_{round(100 * limit):02d}"] = np.array(areas)
    return metrics


def confidence_intervals(
    counts: ScoreCounts, labels: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of [`sweep_metrics`] over resamples of the images.

    Good and defective images are drawn with replacement from their own kind, so that every resample has as many of each as
    the data. An interval covers the choice of test images, not that of training images or seed.

    Args:
        counts: of N images, or of their pixels.
        labels: `(N,)`, True for a defective image.
        level: share of resamples inside an interval.
    """
    labels = np.asarray(labels, dtype=bool)
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, len(labels)))
    for kind in (labels, ~labels):
        weights[:, kind] = rng.multinomial(kind.sum(), np.full(kind.sum(), 1 / kind.sum()), size=resamples)
    # Defective images may have an empty mask; a resample of nothing else has no curve.
    weights = weights[weights @ counts.defective.sum(axis=1) > 0]
    parts = [
        sweep_metrics(sweep(counts, weights[start : start + RESAMPLES_AT_ONCE]))
        for start in range(0, len(weights), RESAMPLES_AT_ONCE)
    ]
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: tuple(np.quantile(np.concatenate([part[name] for part in parts]), tails).tolist()) for name in parts[0]}
