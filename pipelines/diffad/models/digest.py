"""Tells whether two pipelines are the same model: a digest of all that decides their results."""

import hashlib
import inspect
import json
from collections.abc import Mapping

import numpy as np
import torch


def model_digest(components: Mapping[str, object]) -> str:
    """Digest of the settings, weights and calibration of a pipeline's components.

    The same in memory and after saving and loading, from a folder or the Hub, on every device, and in every floating-point
    type that holds the same values. Settings that have their class's default do not count, so that a version of diffad or
    diffusers in which a class has one setting more still gives the same.

    Args:
        components: such as `pipe.components`; an optional one may be None.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, component in sorted(components.items()):
        if component is None:
            continue
        digest.update(json.dumps([name, type(component).__name__, _chosen_settings(component)], sort_keys=True).encode())
        # Schedulers have settings only.
        tensors = component.state_dict() if isinstance(component, torch.nn.Module) else {}
        for key, tensor in sorted(tensors.items()):
            digest.update(json.dumps([key, list(tensor.shape)]).encode())
            digest.update(_as_bytes(tensor))
    return digest.hexdigest()[:16]


def _chosen_settings(component) -> dict:
    """Settings that differ from the defaults, as they are once they have been saved and read."""
    parameters = inspect.signature(type(component)).parameters
    defaults = {name: _saved(one.default) for name, one in parameters.items() if one.default is not one.empty}
    settings = {name: _saved(value) for name, value in component.config.items() if not name.startswith("_")}
    return {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}


def _saved(value: object) -> object:
    # Tuples become lists, and numbers as keys become text.
    return json.loads(json.dumps(value))


def _as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """Its values in one type, so that equal ones give equal bytes."""
    dtype = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.detach().to("cpu", dtype).flatten().numpy()
