"""Which pixels of an anomaly map are defective. Pure functions of arrays."""

import numpy as np

from ..imaging.regions import region_peaks


def defect_mask(anomaly_map: np.ndarray, threshold: float, edge: float | None, normal: float = 0.0) -> np.ndarray:
    """Defects of a map: connected regions that reach above the threshold, each down to its own edge.

    Maps are blurred, so that a strong defect lifts a wide surrounding above any fixed threshold and a weak one only its middle;
    the edge of either lies at about the same share of its height. Heights are above the normal level. A region is 8-connected,
    at least `edge` times as high as the threshold everywhere, and higher than the threshold somewhere. Of it those pixels are
    defective that are at least `edge` times as high as its own peak. This is hysteresis thresholding (Canny 1986) whose lower
    level rises with the peak.

    The mask is empty exactly if no pixel is above the threshold, so that a guarantee for the threshold is one for the mask.
    It stays the same if map, threshold and normal level are multiplied by a positive number or shifted together.

    Args:
        anomaly_map: `(H, W)`, higher is more anomalous; -inf where nothing may be defective.
        threshold: above it a pixel begins a region.
        edge: share of a peak's height at which its region ends, in (0, 1); None marks the pixels above the threshold alone.
        normal: level of normal pixels, below the threshold.

    Returns:
        Bool `(H, W)`.
    """
    above = anomaly_map > threshold
    if edge is None or not above.any():
        return above
    peaks = region_peaks(anomaly_map, anomaly_map >= normal + edge * (threshold - normal))
    return (peaks > threshold) & (anomaly_map >= normal + edge * (peaks - normal))
