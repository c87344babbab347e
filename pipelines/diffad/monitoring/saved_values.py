"""Values of a saved state, each of the type and shape that it was written with; numpy would take None for a number."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np


def whole(value: Any) -> int:
    """A whole number from 0 on, which some stores of JSON write as 1.0.

    Raises:
        ValueError: if it is none.
    """
    if number(value) != int(value) or value < 0:
        raise ValueError(f"{value!r:.40} is no whole number from 0 on")
    return int(value)


def number(value: Any) -> float:
    """A number.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)


def text(value: Any) -> str:
    """A text.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def numbers(values: Any, *shape: int | None) -> np.ndarray:
    """Numbers `shape` in nested lists, of which None stands for any length.

    Raises:
        ValueError: if they are none, or of another shape.
    """
    found = np.array(values)
    fits = found.ndim == len(shape) and all(side in (None, size) for side, size in zip(shape, found.shape, strict=True))
    if not isinstance(values, list) or not fits or found.dtype.kind not in "iuf":
        raise ValueError(f"an array of {found.dtype} and shape {found.shape} in place of numbers {shape}")
    return found.astype(float)


def check_pairs(saved: Mapping[str, Any], pairs: Collection[tuple[str, str]]) -> None:
    """Refuses an object in which one of two values is lost that came with one release, so that it has both or none.

    Raises:
        ValueError: naming them.
    """
    for first, second in pairs:
        if (first in saved) != (second in saved):
            raise ValueError(f"one of {first} and {second} is lost")
