"""All methods of repair, by the names under which `pipe.reconstruct` knows them."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..deprecation import with_present_names
from .gradient_denoising import GradientDenoising, GradientDescent
from .inpainting import Inpainting
from .partial_diffusion import PartialDiffusion
from .sampling import RegionSampling

RepairMethod = Inpainting | RegionSampling | GradientDenoising | GradientDescent | PartialDiffusion
PRESETS: dict[str, RepairMethod] = {
    "default": Inpainting(),
    "mean": Inpainting(content="mean", texture_strength=0.0),
    "samples": RegionSampling(),
    "paper": GradientDenoising(),
    "algorithm_1": GradientDenoising(timestep=None, stochastic=True, schedule="betas"),
    "gradient_descent": GradientDescent(),
    "partial_diffusion": PartialDiffusion(),
}
FORMER_SETTINGS = {
    "grain": "texture_strength",
    "halo_share": "border_share",
    "contrast": "border_difference",
    "most_replaced": "most_enclosed",
}


def resolve_method(preset: str | RepairMethod, settings: Mapping[str, Any]) -> RepairMethod:
    """Method of a preset, or the given one, with some of its settings replaced.

    Args:
        preset: a key of [`PRESETS`], or a method.
        settings: by name; former names work on with a warning.

    Raises:
        ValueError: if there is no such preset, or a setting does not exist or is out of its range.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    method = PRESETS[preset] if isinstance(preset, str) else preset
    if isinstance(method, Inpainting):
        settings = with_present_names(settings, FORMER_SETTINGS)
    names = [field.name for field in fields(method)]
    if unknown := sorted(set(settings).difference(names)):
        raise ValueError(f"{type(method).__name__} has no setting {', '.join(unknown)}; it has {', '.join(names)}")
    return replace(method, **settings)
