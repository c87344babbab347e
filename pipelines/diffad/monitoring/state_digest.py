"""A digest inside a saved state, by which damage is told: any value that is lost, or not what was written."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

DIGEST = "digest"  # its name in the state


class StateError(ValueError):
    """A saved state can't be resumed; says why."""


class DamagedStateError(StateError):
    """A saved state is not as it was written; says where."""

    def __init__(self, what: str):
        super().__init__(f"damaged ({what})")


class LaterStateError(StateError):
    """A saved state is of a later release, which may write it otherwise."""

    def __init__(self):
        super().__init__("written by a later release of diffad")


def with_digest(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state, of values JSON can hold, with the digest of all its other values in place of a former one."""
    return {**state, DIGEST: _digest(state)}


def check_content(saved: Any) -> None:
    """Refuses a state that is not as [`with_digest`] gave it. States of earlier releases have no digest.

    Raises:
        DamagedStateError: if it is no JSON object, holds a number that is not finite, or its digest is of other values.
    """
    if not isinstance(saved, dict):
        raise DamagedStateError("not an object of JSON")
    try:
        if place := _not_finite(saved):
            raise DamagedStateError(f"{place} is not finite")
        is_as_written = DIGEST not in saved or saved[DIGEST] == _digest(saved)
    except (RecursionError, OverflowError) as error:
        raise DamagedStateError(type(error).__name__) from None
    if not is_as_written:
        raise DamagedStateError("a value is lost or not as it was written: the digest does not fit")


def _digest(state: Mapping[str, Any]) -> str:
    content = {name: value for name, value in state.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(_numbers_alike(content), sort_keys=True).encode()).hexdigest()[:16]


def _numbers_alike(value: Any) -> Any:
    """The same with every number as floating point: some stores of JSON give 1 for 1.0."""
    if isinstance(value, Mapping):
        return {name: _numbers_alike(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers_alike(one) for one in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _not_finite(value: Any, place: str = "") -> str:
    """Where the first number is that is not finite, such as `score_test.counts.3`; empty if there is none."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return next(filter(None, (_not_finite(one, f"{place}.{name}") for name, one in entries)), "")
    return place.lstrip(".") if isinstance(value, float) and not math.isfinite(value) else ""
