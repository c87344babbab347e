"""Text and YAML values turned into settings of their types."""

import math
import types
import typing
from collections.abc import Mapping

import yaml


class SettingsError(ValueError):
    """A setting that can't be used; the message names it."""


def parsed(text: str, where: str, kinds: Mapping[str, object]) -> typing.Any:
    """YAML with settings that want text kept as they are written: `[01, 02]` are names, `no` is a precision.

    Args:
        text: a mapping of settings, or the value of the one setting in `kinds`.
        where: begins the error message.
        kinds: type of each setting.

    Raises:
        SettingsError: naming the line that is no YAML.
    """
    try:
        values, as_text = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none
        raise SettingsError(_yaml_problem(error, where)) from None
    if len(kinds) == 1:
        return as_text if _wants_text(*kinds.values()) and values is not None else values
    if isinstance(values, dict):
        for name, value in values.items():
            if _wants_text(kinds.get(name)) and value is not None:
                values[name] = as_text.get(str(name), value)
    return values


def _yaml_problem(error: Exception, where: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join((getattr(error, "problem", None) or str(error)).split())
    if r"'\t'" in problem:
        problem = "a tab, which YAML does not take for indentation; use spaces"
    return f"{where}: line {mark.line + 1}: {problem}" if mark else f"{where}: {problem}"


def _wants_text(kind) -> bool:
    return kind in (str, str | None, list[str])


def converted(kind: typing.Any, value: object, name: str) -> typing.Any:
    """A setting as its type wants it: YAML reads 1e-4 as text and 1 for 1.0, and one value is a list of one.

    Args:
        kind: the type, such as `int`, `float | None`, `dict | str`, `list[str]` or `Mapping[str, float]`.
        value: as it was given.
        name: how errors call it.

    Raises:
        SettingsError: naming a setting of another type, or a number that is not finite.
    """
    if isinstance(kind, types.UnionType):
        kinds = typing.get_args(kind)
        if (value is None and types.NoneType in kinds) or (isinstance(value, str) and str in kinds):
            return value
        kind = kinds[0]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, tuple):
        if value is None or isinstance(value, dict):
            raise SettingsError(f"{name}: expected a list, got {value!r}")
        return [converted(inner[0], entry, name) for entry in as_list(value)]
    if origin is not None:  # a mapping
        return {key: converted(inner[1], entry, f"{name}: {key}") for key, entry in converted(dict, value, name).items()}
    number = _number(kind, value) if kind in (int, float) else value
    if not isinstance(number, kind) or isinstance(number, bool) != (kind is bool):
        raise SettingsError(f"{name}: expected {kind.__name__}, got {value!r}")
    return number


def _number(kind: type, value) -> int | float | None:
    """None where the value is no finite number of that kind."""
    if isinstance(value, bool | None):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        return None
    return kind(value) if isinstance(value, int) else kind(number)


def as_list(value: object) -> list:
    """All values of a setting: none where it is None."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
