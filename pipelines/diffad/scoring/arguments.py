"""Arguments of scoring and repair, and how wrong ones are refused; a pipeline and an exported model take most of them alike."""

from collections.abc import Collection, Sized
from numbers import Integral
from typing import Any

from ..imaging.array_maps import is_size


def check_arguments(images: Sized, batch_size: int, map_size: tuple[int, int] | None = None) -> None:
    """Refuses what can't be scored with, before work starts.

    Raises:
        ValueError: naming the argument.
    """
    if not len(images):
        raise ValueError("no images given")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if map_size is not None and not is_size(map_size):
        raise ValueError(f"map_size must be (height, width) in pixels, got {map_size!r}")


def check_timesteps_and_seed(timesteps: Any = (), seed: Any = 0) -> None:
    """Refuses what is no sequence of whole numbers, and no whole number.

    Raises:
        ValueError: naming the argument.
    """
    if not are_integers(timesteps):
        raise ValueError(f"timesteps must be whole numbers in a sequence, such as (20, 401), got {timesteps!r}")
    if not isinstance(seed, Integral):
        raise ValueError(f"seed must be a whole number, got {seed!r}")


def are_integers(values: Any) -> bool:
    """Whether these are several whole numbers, none or one included."""
    return isinstance(values, Collection) and all(isinstance(value, Integral) for value in values)
