"""What the pipeline returns."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class DiffADOutput(BaseOutput):
    """Verdict on N images.

    Args:
        image_scores: `(N,)` float32, higher is more anomalous, unbounded.
        p_values: `(N,)`, share of normal parts expected to score at least as high, from the held-out normals.
        is_defective: `(N,)` bool, True where the image is called defective.
        anomaly_maps: N arrays `(height, width)` float32 at each image's own size, unbounded.
        masks: N bool arrays of the same sizes, True on pixels called defective.
        false_alarm_rates: `(N,)`, share of normal parts of each image's category that `labels`, and with the same guarantee
            `masks`, may call defective: the requested rate, or the one that was chosen.
        image_thresholds, pixel_thresholds: `(N,)` float, above them image score and pixels of each image are called defective:
            those of its category.
        term_maps: per image the standardised map of each score term at each timestep (`kl@20`, ..., `mahalanobis`), if
            asked for.
        categories: name of each image's category, given or recognised, for a model trained on several.
    """

    image_scores: np.ndarray
    p_values: np.ndarray
    is_defective: np.ndarray
    anomaly_maps: list[np.ndarray]
    masks: list[np.ndarray]
    false_alarm_rates: np.ndarray
    image_thresholds: np.ndarray
    pixel_thresholds: np.ndarray
    term_maps: list[dict[str, np.ndarray]] | None = None
    categories: list[str] | None = None


@dataclass
class ReconstructionOutput(BaseOutput):
    """N images as they should have looked.

    Args:
        images: N RGB images of the inputs' sizes.
        difference_maps: N arrays `(height, width)` float32 in [0, 1], mean absolute change over channels.
        intermediates: per image, the RGB images after the steps asked for, at the size at which images are scored.
        traces: N arrays `(1 + steps,)`, the Mahalanobis loss (Eq. 12) of the input and after every step, if asked for.
    """

    images: list[Image.Image]
    difference_maps: list[np.ndarray]
    intermediates: list[list[Image.Image]]
    traces: list[np.ndarray] | None = None
