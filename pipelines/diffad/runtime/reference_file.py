"""What an exported model's calibration images look like, in a file that only the monitor reads."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..scoring.reference_parts import ReferenceParts
from .description import DetectorDescription

REFERENCE_FILE = "reference_parts.safetensors"


def read_reference_parts(
    folder: Path, description: DetectorDescription, precision: str, category: int
) -> ReferenceParts | None:
    """What a category's calibration images look like in a precision; None where the folder does not hold it."""
    tensors = read_tensors(folder, description)
    names = {name: _key(precision, category, name) for name in ReferenceParts.__dataclass_fields__}
    if not set(names.values()) <= set(tensors):
        return None
    return ReferenceParts(**{name: tensors[key] for name, key in names.items()})


def read_tensors(folder: Path, description: DetectorDescription) -> dict[str, np.ndarray]:
    """All tensors of the file; none where the folder has no such file."""
    if REFERENCE_FILE not in description.files:
        return {}
    from safetensors.numpy import load_file  # which `detector.py` alone does not need

    return load_file(folder / REFERENCE_FILE)


def tensors_of(precision: str, references: Mapping[int, ReferenceParts]) -> dict[str, np.ndarray]:
    """Tensors of the file for one precision, of each category."""
    return {
        _key(precision, category, name): np.ascontiguousarray(values)
        for category, of_category in references.items()
        for name, values in asdict(of_category).items()
    }


def _key(precision: str, category: int, name: str) -> str:
    return f"{precision}.{category}.{name}"
