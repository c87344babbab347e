"""Where images come from: published layouts, plain folders, CSV manifests and the `datasets` library; one file each."""

from .description import DatasetDescription, describe
from .ground_truth import load_mask
from .huggingface import stream_samples
from .layout import Layout
from .registry import LAYOUTS, category_samples, evaluation_samples, find_layout, training_samples
from .sample import GOOD, DataError, Mask, Sample
from .split import count_groups, split_by_names, split_held_out
from .walk import image_files

__all__ = [
    "GOOD",
    "LAYOUTS",
    "DataError",
    "DatasetDescription",
    "Layout",
    "Mask",
    "Sample",
    "category_samples",
    "count_groups",
    "describe",
    "evaluation_samples",
    "find_layout",
    "image_files",
    "load_mask",
    "split_by_names",
    "split_held_out",
    "stream_samples",
    "training_samples",
]
