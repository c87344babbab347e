"""What can happen to a saved state of a monitor: one value of it lost, of another type, or not finite."""

import copy
import math
from collections.abc import Iterator
from typing import Any

OTHERS = (None, True, "x", -1, 7.5, [], {}, math.nan, math.inf)


def damaged_values(state: dict) -> Iterator[dict]:
    """The state with one thing changed, for each key without it, and for each value with others of other types
    or, if it is a number, with the next one."""
    for place in _places(state):
        damaged = copy.deepcopy(state)
        holder = _at(damaged, place[:-1])
        value = holder.pop(place[-1])
        if place != ("digest",):  # without it the rest is intact
            yield damaged
        changes = [other for other in OTHERS if type(other) is not type(value)]
        for other in changes + ([value + 1] if type(value) in (int, float) and value + 1 != value else []):
            changed = copy.deepcopy(state)
            _at(changed, place[:-1])[place[-1]] = other
            yield changed


def without_digest(state: dict) -> dict:
    """As releases wrote it that had none."""
    return {name: value for name, value in state.items() if name != "digest"}


def _places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Keys of objects, and the first and last entries of lists, that lead to each value."""
    if isinstance(value, dict):
        entries = list(value)
    elif isinstance(value, list):
        entries = sorted({0, len(value) - 1}) if value else []
    else:
        return
    for entry in entries:
        yield (*place, entry)
        yield from _places(value[entry], (*place, entry))


def _at(value: Any, place: tuple) -> Any:
    for entry in place:
        value = value[entry]
    return value
