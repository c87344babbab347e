"""Settings and arguments that are whole numbers, and how others are refused."""

from collections.abc import Collection
from numbers import Integral
from typing import Any


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
