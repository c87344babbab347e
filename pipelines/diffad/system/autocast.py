"""Computations that keep float32 inside a caller's `torch.autocast`."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device_type: str) -> AbstractContextManager:
    """Context that switches autocast off for a kind of device (`cpu`, `cuda`, ...), and does nothing where it is off."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
