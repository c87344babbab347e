"""Former names of arguments, attributes and settings: they work on for one release, and say how they are called now."""

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

LAST_RELEASE = "0.2"  # with the names before 0.2
Function = TypeVar("Function", bound=Callable)


def warn_renamed(former: str, present: str, stacklevel: int = 3) -> None:
    """Tells the caller that a name has changed.

    Args:
        former, present: names as the user writes them.
        stacklevel: of [`warnings.warn`]; 3 points at the caller of the function that calls this one.
    """
    warnings.warn(
        f"{former} is now called {present}; the former name goes after diffad {LAST_RELEASE}",
        FutureWarning,
        stacklevel=stacklevel,
    )


def with_present_names(settings: Mapping[str, Any], present_names: Mapping[str, str], stacklevel: int = 3) -> dict[str, Any]:
    """Settings by their present names; a former one is warned of.

    Args:
        settings: by former or present names.
        present_names: present name of each former one.

    Raises:
        ValueError: if a setting is given under both names.
    """
    renamed: dict[str, Any] = {}
    for name, value in settings.items():
        present = present_names.get(name, name)
        if present in renamed or (present != name and present in settings):
            raise ValueError(f"{name} is the former name of {present}: give one of them")
        if present != name:
            warn_renamed(name, present, stacklevel + 1)
        renamed[present] = value
    return renamed


def accepts_former_names(**present_names: str) -> Callable[[Function], Function]:
    """Lets a function be called with former names of its arguments, which it warns of.

    Args:
        present_names: present name of each former one.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **with_present_names(kwargs, present_names))

        return call

    return decorate


def former_name(former: str, present: str) -> property:
    """A read-only attribute under its former name."""

    def read(self):
        warn_renamed(former, present)
        return getattr(self, present)

    read.__doc__ = f"Former name of `{present}`."
    return property(read)
