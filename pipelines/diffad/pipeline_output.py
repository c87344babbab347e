"""What the pipeline returns."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from .deprecation import accepts_former_names, former_name, warn_renamed

# numpy arrays, or tensors for output_type="pt"
Array = np.ndarray | torch.Tensor
FORMER_FIELDS = {"labels": "is_defective", "partial_maps": "term_maps", "class_labels": "categories"}


@dataclass
class DiffADOutput(BaseOutput):
    """Verdict on N images.

    Args:
        image_scores: `(N,)` float32, higher is more anomalous, unbounded.
        p_values: `(N,)`, share of good parts expected to score at least as high, from the calibration images.
        is_defective: `(N,)` bool, True where the image is called defective.
        anomaly_maps: N maps `(height, width)` float32 at each image's own size, unbounded.
        masks: N bool masks of the same sizes, True on pixels called defective: connected regions that reach above the pixel
            threshold, each down to a share of its own peak, the calibration's `mask_edge` (None, as in models that were saved
            without it: pixels above the threshold alone). Empty exactly if no pixel is above the threshold.
        false_alarm_rates: `(N,)`, share of good parts of each image's category that `is_defective`, and with the same guarantee
            `masks`, may call defective: the requested rate, or the one that was chosen.
        image_thresholds, pixel_thresholds: `(N,)` float, above them an image score or a map's peak is called defective:
            those of the image's category.
        term_maps: per image the standardised map of each score term at each timestep (`kl@20`, ..., `mahalanobis`), if
            asked for.
        categories: name of each image's category, given or recognised, for a model trained on several; None for a part of a
            product that it has never seen, which is scored as the nearest category and called defective.
        pooled_features: `(N, D)` float32, spatial means of the extractor's features, by which the monitor knows images; if
            asked for, and None of a score that looks at no features of the whole image.
    """

    image_scores: Array
    p_values: Array
    is_defective: Array
    anomaly_maps: list[Array]
    masks: list[Array]
    false_alarm_rates: Array
    image_thresholds: Array
    pixel_thresholds: Array
    term_maps: list[dict[str, Array]] | None = None
    categories: list[str | None] | None = None
    pooled_features: Array | None = None

    def converted(self, output_type: str, device: torch.device) -> "DiffADOutput":
        """All arrays and maps as numpy arrays (`np`) or as tensors on a device (`pt`)."""

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return DiffADOutput(**_converted(values, output_type, device))

    def __getitem__(self, key: str | int | slice) -> Any:
        present = FORMER_FIELDS.get(key, key) if isinstance(key, str) else key
        if present != key:
            warn_renamed(key, present)
        return super().__getitem__(present)

    labels = former_name("labels", "is_defective")
    partial_maps = former_name("partial_maps", "term_maps")
    class_labels = former_name("class_labels", "categories")


DiffADOutput.__init__ = accepts_former_names(**FORMER_FIELDS)(DiffADOutput.__init__)


def _converted(value: Any, output_type: str, device: torch.device) -> Any:
    """Everything in lists and dicts as arrays or tensors; RGB images have values in [0, 1] then, and shapes as diffusers'."""
    if isinstance(value, list):
        return [_converted(item, output_type, device) for item in value]
    if isinstance(value, dict):
        return {name: _converted(item, output_type, device) for name, item in value.items()}
    if isinstance(value, Image.Image):
        value = np.asarray(value, dtype=np.float32) / 255  # (height, width, 3)
        value = value if output_type == "np" else np.ascontiguousarray(value.transpose(2, 0, 1))
    if output_type == "np":
        return value.cpu().numpy() if isinstance(value, torch.Tensor) else value
    if not isinstance(value, np.ndarray | torch.Tensor):
        return value
    tensor = torch.as_tensor(value)
    is_unknown = device.type == "mps" and tensor.dtype == torch.float64  # which MPS does not have
    return (tensor.float() if is_unknown else tensor).to(device)


@dataclass
class ReconstructionOutput(BaseOutput):
    """N images as they should have looked.

    Args:
        images: N RGB images of the inputs' sizes: PIL images, or float32 in [0, 1], arrays `(height, width, 3)` for
            output_type="np" and tensors `(3, height, width)` for output_type="pt", where all else are tensors, too.
        difference_maps: N arrays `(height, width)` float32 in [0, 1], mean absolute change over channels.
        intermediates: per image, the RGB images after the steps asked for, at the size at which images are scored.
        traces: N arrays `(1 + steps,)`, the Mahalanobis loss (Eq. 12) of the input and after every step, if asked for.
        confident: `(N,)` bool, False where too little is left of the part to tell what it should have looked like, or the
            image still scores as defective; None of presets that can't tell: those of the paper, and partial diffusion.
    """

    images: list[Image.Image] | list[Array]
    difference_maps: list[Array]
    intermediates: list[list[Image.Image]] | list[list[Array]]
    traces: list[Array] | None = None
    confident: Array | None = None

    @classmethod
    def of(cls, repaired: Iterable[tuple[Any, ...]], with_traces: bool) -> "ReconstructionOutput":
        """Joins what repair gave of each image, in the order of the fields."""
        *columns, traces, confident = map(list, zip(*repaired, strict=True))
        is_told = None not in confident
        return cls(*columns, traces if with_traces else None, np.array(confident) if is_told else None)

    def converted(self, output_type: str, device: torch.device) -> "ReconstructionOutput":
        """The same with PIL images (`pil`), all as numpy arrays (`np`), or all as tensors on a device (`pt`)."""
        if output_type == "pil":
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return ReconstructionOutput(**_converted(values, output_type, device))
