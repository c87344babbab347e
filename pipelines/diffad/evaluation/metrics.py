"""Detection metrics (is the part defective?) and localization metrics (which pixels?) of one category, both exact."""

import numpy as np

from ..deprecation import accepts_former_names
from .counts import count_together, region_shares
from .sweep import FPR_LIMITS, sweep, sweep_metrics


@accepts_former_names(labels="is_defective")
def detection_metrics(scores: np.ndarray, is_defective: np.ndarray) -> dict[str, float]:
    """Image-level metrics.

    Args:
        scores: `(N,)` image scores, higher is more anomalous, any finite range.
        is_defective: `(N,)` truth, 1 or True for a defective image.

    Returns:
        `image_auroc`, `image_ap` and `image_f1_max`, each in [0, 1].

    Raises:
        ValueError: if shapes differ, a score is not finite, or all images are of one kind, for which no curve exists.
    """
    scores, is_defective = np.asarray(scores), np.asarray(is_defective, dtype=bool)
    if scores.shape != is_defective.shape or scores.ndim != 1:
        raise ValueError(f"scores and truth must both be (N,), got {scores.shape} and {is_defective.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("image scores contain NaN or infinity")
    if is_defective.all() or not is_defective.any():
        raise ValueError(
            f"detection metrics need good and defective images, got {is_defective.sum()} defective of {is_defective.size}"
        )
    counts = count_together(scores[~is_defective], scores[is_defective])
    return {f"image_{name}": value.item() for name, value in sweep_metrics(sweep(counts)).items()}


def localization_metrics(maps: np.ndarray, masks: np.ndarray, fpr_limits: tuple[float, ...] = FPR_LIMITS) -> dict[str, float]:
    """Pixel-level metrics over all pixels of all images.

    Args:
        maps: `(N, H, W)` anomaly maps, higher is more anomalous, any finite range.
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
    shares = np.concatenate([region_shares(mask) for mask in masks if mask.any()])
    metrics = sweep_metrics(sweep(count_together(maps[~masks], maps[masks], shares)), fpr_limits)
    return {name if name.startswith("aupro") else f"pixel_{name}": value.item() for name, value in metrics.items()}


def mask_metrics(called: np.ndarray, masks: np.ndarray, best_f1: float) -> dict[str, float]:
    """How well the pixels called defective cover the defects, all images together.

    Args:
        called, masks: `(N, H, W)` boolean, what was said and the truth, which holds at least one defective pixel.
        best_f1: `pixel_f1_max` of the maps, the best F1 of one threshold for all images, above 0.

    Returns:
        `seg_f1`, pixel F1 in [0, 1], and `seg_f1_share`, its ratio to `best_f1`; above 1 where masks end at defects' own edges
        better than any one threshold does.

    Raises:
        ValueError: if shapes differ, or no pixel is defective.
    """
    called, masks = np.asarray(called, dtype=bool), np.asarray(masks, dtype=bool)
    if called.shape != masks.shape or not masks.any():
        raise ValueError(f"masks of F1 need one shape and a defective pixel, got {called.shape} and {masks.shape}")
    f1 = 2 * np.count_nonzero(called & masks) / (np.count_nonzero(called) + np.count_nonzero(masks))
    return {"seg_f1": f1, "seg_f1_share": f1 / best_f1}
