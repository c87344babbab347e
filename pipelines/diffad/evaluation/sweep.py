"""The threshold sweep that all metrics come from, whether the scores are counted exactly or in the bins of a bootstrap."""

from dataclasses import dataclass

import numpy as np

from .counts import ScoreCounts

FPR_LIMITS = (0.3, 0.05)  # of AUPRO


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


def sweep(counts: ScoreCounts, weights: np.ndarray | None = None) -> Sweep:
    """Runs the threshold through all bins, with every image counted as often as `weights` `(W, N)` say; None is once."""

    def cumulated(per_image: np.ndarray) -> np.ndarray:
        total = per_image.sum(axis=0, keepdims=True, dtype=np.float64) if weights is None else weights @ per_image
        return np.pad(np.cumsum(total, axis=1), ((0, 0), (1, 0)))

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


def sweep_metrics(curves: Sweep, fpr_limits: tuple[float, ...] = FPR_LIMITS) -> dict[str, np.ndarray]:
    """Areas under the curves and the best F1, each `(W,)`.

    Args:
        curves: of W weightings of the images.
        fpr_limits: up to which false positive rates the per-region overlap is integrated, each in (0, 1].

    Returns:
        `auroc`, `ap` and `f1_max`, and where regions were counted `aupro_<limit in percent>`. Average precision is the sum of
        steps over recall: no optimistic interpolation between thresholds.
    """
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


def area_under_curve(x: np.ndarray, y: np.ndarray, x_limit: float) -> float:
    """Trapezoidal area under a curve from x = 0 to `x_limit`, divided by `x_limit`.

    `x` is non-decreasing from 0 to 1; the curve is cut at the limit by linear interpolation (MVTec AD's definition of AUPRO).
    """
    end = np.searchsorted(x, x_limit, side="right")
    cut_x, cut_y = x[:end], y[:end]
    if cut_x[-1] < x_limit:
        slope = (y[end] - y[end - 1]) / (x[end] - x[end - 1])
        cut_x = np.append(cut_x, x_limit)
        cut_y = np.append(cut_y, y[end - 1] + slope * (x_limit - x[end - 1]))
    return float(np.clip(np.trapezoid(cut_y, cut_x) / x_limit, 0.0, 1.0))  # clip: float rounding only
