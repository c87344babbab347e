"""What two choices of settings have otherwise, in words."""

from collections.abc import Mapping
from typing import Any


def differences(there: Mapping[str, Any], now: Mapping[str, Any], former: Mapping[str, Any] | None = None) -> str:
    """Settings that were saved otherwise than they are now, such as `level 0.05 there, 0.1 now`; empty for none.

    Args:
        there, now: by their names.
        former: values of settings that earlier releases did not save.
    """
    defaults = former or {}
    return ", ".join(
        f"{name.replace('_', ' ')} {there.get(name)} there, {value} now"
        for name, value in now.items()
        if there.get(name, defaults.get(name)) != value
    )
