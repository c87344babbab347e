"""Where images come from: published layouts, plain folders, CSV manifests and the `datasets` library; one file each."""

from .description import Description, describe
from .files import image_files
from .huggingface import stream_samples
from .layout import Layout
from .registry import LAYOUTS, category_samples, evaluation_samples, find_layout, training_samples
from .sample import GOOD, DataError, Mask, Sample, load_mask, split_held_out

__all__ = [
    "GOOD",
    "LAYOUTS",
    "DataError",
    "Description",
    "Layout",
    "Mask",
    "Sample",
    "category_samples",
    "describe",
    "evaluation_samples",
    "find_layout",
    "image_files",
    "load_mask",
    "split_held_out",
    "stream_samples",
    "training_samples",
]
