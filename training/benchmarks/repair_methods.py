"""What the repair benchmark compares: presets, and the plainest repairs of the place that our region marks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.imaging.blending import blend_change
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.repair.alignment import surroundings
from diffad.repair.fill import fill_from_surroundings
from diffad.repair.presets import PRESETS
from PIL import Image

# Fewer gradient steps than the paper's 500, which take five times as long.
SETTINGS = {
    "diffad": {"preset": "default"},
    "diffad, mean": {"preset": "mean"},
    "Algorithm 1": {"preset": "paper", "num_steps": 100},
    "gradient descent": {"preset": "gradient_descent", "num_steps": 30},
    "partial diffusion, t = 100": {"preset": "partial_diffusion", "timestep": 100},
    "partial diffusion, t = 200": {"preset": "partial_diffusion", "timestep": 200},
}
# What takes longest, and is measured if it is named only.
SAMPLES = {
    "samples": {"preset": "samples"},
    "samples, guided": {"preset": "samples", "guidance": 0.02},
}
SLOW = ("Algorithm 1",)
PASTED = "nearest good image pasted"


class MethodResult(NamedTuple):
    """An image `(H, W, 3)` uint8, and whether the method is confident of it, None where it does not say."""

    image: np.ndarray
    confident: bool | None = None


Method = Callable[[np.ndarray], MethodResult]  # repairs an image (H, W, 3) uint8


def methods_of(pipe: DiffADPipeline, names: Sequence[str] | None = None) -> dict[str, Method]:
    """Methods by name; the nearest good image is pasted only where the model keeps good images.

    Args:
        names: of those wanted; None is all but those of [`SAMPLES`].

    Raises:
        KeyError: if there is no such method.
    """
    methods: dict[str, Method] = {"nothing": MethodResult, "fill": lambda image: MethodResult(filled(pipe, image))}
    if pipe.references is not None:
        methods[PASTED] = lambda image: MethodResult(pasted(pipe, image))
    methods |= {name: _preset(pipe, settings) for name, settings in SETTINGS.items()}
    of_samples = {name: _preset(pipe, settings) for name, settings in SAMPLES.items()}
    return methods if names is None else {name: (methods | of_samples)[name] for name in names}


def filled(pipe: DiffADPipeline, image: np.ndarray) -> np.ndarray:
    """What our region marks, continued smoothly from its surroundings."""
    return _with_region_replaced(pipe, image, lambda pixels, region: fill_from_surroundings(pixels[None], region[None])[0])


def pasted(pipe: DiffADPipeline, image: np.ndarray) -> np.ndarray:
    """What our region marks, taken as it is from the good image of the model that is nearest around it."""
    references = pipe.references.of_category(None)
    return _with_region_replaced(pipe, image, lambda pixels, region: nearest(pixels, region[0] > 0, references))


def nearest(image: torch.Tensor, region: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """The one of the references `(N, 3, H, W)` whose pixels around a region `(H, W)` are nearest to an image's."""
    weight = torch.from_numpy(surroundings(region.numpy(), decay_length=16.0)).float()
    return references[(weight * (references - image).square()).sum(dim=(1, 2, 3)).argmin()]


def _with_region_replaced(
    pipe: DiffADPipeline, image: np.ndarray, content: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """The image with the region that the default preset repairs first replaced; as it is where it scores as normal.

    Args:
        content: `(pixels, region)` at the model's resolution, `(3, H, W)` and `(1, H, W)`, to what the region should hold.
    """
    output = pipe(image, map_size=pipe.image_size)
    if not output.is_defective[0]:
        return image
    method = PRESETS["default"]
    anomaly_map = torch.from_numpy(output.anomaly_maps[0])[None]
    region = method.find_region(anomaly_map, torch.from_numpy(output.pixel_thresholds), method.peak_share)[0]  # (1, H, W)
    pixels = to_model_range(torch.from_numpy(resize_rgb(Image.fromarray(image), pipe.image_size)))  # (3, H, W)
    after = torch.where(region > 0, content(pixels, region), pixels)
    return np.asarray(blend_change(Image.fromarray(image), pixels, after, region))


def _preset(pipe: DiffADPipeline, settings: dict) -> Method:
    def repair(image: np.ndarray) -> MethodResult:
        output = pipe.reconstruct(image, **settings)
        return MethodResult(np.asarray(output.images[0]), None if output.confident is None else bool(output.confident[0]))

    return repair
