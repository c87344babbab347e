"""Detection metrics (is the part defective?) and localization metrics (which pixels?) of one category.

Localization metrics share one exact threshold sweep: all pixels are sorted once by score and every curve is read from
cumulative sums at the distinct scores, so nothing is binned and every area lies in [0, 1].
"""

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from ..imaging.regions import connected_regions


def detection_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Image-level metrics.

    Args:
        scores: `(N,)` image scores, higher is more anomalous, any range.
        labels: `(N,)` truth, 1 or True for a defective image.

    Returns:
        `image_auroc`, `image_ap` and `image_f1_max`, each in [0, 1].

    Raises:
        ValueError: if the labels hold only one class, for which no curve exists.
    """
    labels = np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        raise ValueError(f"detection metrics need good and defective images, got {labels.sum()} defective of {labels.size}")
    precision, recall, _ = precision_recall_curve(labels, scores)
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "image_f1_max": float(_f1(precision, recall).max()),
    }


def localization_metrics(maps: np.ndarray, masks: np.ndarray, fpr_limits: tuple[float, ...] = (0.3, 0.05)) -> dict[str, float]:
    """Pixel-level metrics over all pixels of all images.

    Args:
        maps: `(N, H, W)` anomaly maps, higher is more anomalous, any range.
        masks: `(N, H, W)` boolean truth; good images have an empty mask.
        fpr_limits: upper integration limits of the per-region overlap curve, each in (0, 1].

    Returns:
        `pixel_auroc`, `pixel_ap`, `pixel_f1_max` and one `aupro_<limit in percent>` per limit, each in [0, 1].

    Raises:
        ValueError: if shapes differ, a map is not finite, a limit is out of range, or the masks hold only one class.
    """
    maps, masks = np.asarray(maps), np.asarray(masks, dtype=bool)
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"maps and masks must both be (N, H, W), got {maps.shape} and {masks.shape}")
    if not np.isfinite(maps).all():
        raise ValueError("anomaly maps contain NaN or infinity")
    if not all(0 < limit <= 1 for limit in fpr_limits):
        raise ValueError(f"fpr_limits must lie in (0, 1], got {fpr_limits}")
    if masks.all() or not masks.any():
        raise ValueError("localization metrics need both normal and anomalous pixels in the masks")

    fpr, tpr, pro, precision = _threshold_sweep(maps, masks)
    # AP is the step-wise sum over recall, as in sklearn: no optimistic interpolation between thresholds.
    average_precision = float(np.sum(np.diff(tpr) * precision[1:]))
    metrics = {
        "pixel_auroc": float(np.trapezoid(tpr, fpr)),
        "pixel_ap": average_precision,
        "pixel_f1_max": float(_f1(precision, tpr).max()),
    }
    for limit in fpr_limits:
        metrics[f"aupro_{round(100 * limit):02d}"] = area_under_curve(fpr, pro, limit)
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


def label_regions(masks: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the 8-connected regions of `(N, H, W)` masks from 1 on, never joining two images."""
    regions = np.zeros(masks.shape, dtype=np.int32)
    count = 0
    for i in np.flatnonzero(masks.any(axis=(1, 2))):
        labelled, found = connected_regions(masks[i])
        regions[i] = np.where(labelled > 0, labelled + count, 0)
        count += found
    return regions, count


def _threshold_sweep(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """False positive rate, recall, mean per-region overlap and precision at every distinct score, from high to low."""
    regions, count = label_regions(masks)
    region_weight = np.zeros(count + 1)
    region_weight[1:] = 1.0 / (np.bincount(regions.ravel(), minlength=count + 1)[1:] * count)

    scores = maps.ravel()
    order = np.argsort(scores, kind="stable")[::-1]
    scores = scores[order]
    last_of_tie = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # ties share one threshold
    positives = np.cumsum(masks.ravel()[order], dtype=np.int64)[last_of_tie]
    overlap = np.cumsum(region_weight[regions.ravel()[order]])[last_of_tie]
    selected = last_of_tie + 1

    fpr = (selected - positives) / (selected[-1] - positives[-1])
    tpr = positives / positives[-1]
    pro = overlap / overlap[-1]  # the sum is 1 up to rounding; dividing makes it exact
    precision = positives / selected
    return np.append(0.0, fpr), np.append(0.0, tpr), np.append(0.0, pro), np.append(1.0, precision)


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
