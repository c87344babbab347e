"""The shape in which a model sees images: squares, or for long parts rectangles of their own aspect."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from diffad_training.config import AUTO, LARGEST_RATIO, TrainingConfig
from diffad_training.good_images import good_samples

SAMPLED_IMAGES = 32  # of each category, whose aspects are looked at, spread evenly
LEAST_RATIO = 1.5  # of the longer to the shorter side, from which on squeezing images into squares loses detail
TOLERANCE = 0.1  # by which aspects may differ from their median, relatively


def with_aspect_ratio(config: TrainingConfig) -> TrainingConfig:
    """The settings with the aspect ratio that their `auto` means for the images of the run.

    It is that of the images where they are longer than 1.5:1 and alike, at most 4:1; else 1. Tiles, and images that are turned
    by quarters, are squares.

    Raises:
        ImageError, DataError: if images or their source can't be read.
    """
    if config.aspect_ratio != AUTO:
        return config
    ratio = 1.0
    if config.short_side is None and "rot90" not in config.augmentations:
        samples = good_samples(config)
        sizes = [
            of_category[i].read().size
            for category in {sample.category for sample in samples}
            for of_category in [[sample for sample in samples if sample.category == category]]
            for i in np.unique(np.linspace(0, len(of_category) - 1, SAMPLED_IMAGES).astype(int))
        ]
        ratio = common_aspect_ratio(sizes)
    return dataclasses.replace(config, aspect_ratio=ratio)


def common_aspect_ratio(sizes: Sequence[tuple[int, int]]) -> float:
    """Width / height that a model keeps of images of these sizes `(width, height)`; 1 where they are squeezed into squares."""
    logs = np.log([width / height for width, height in sizes])
    median = float(np.median(logs))
    if abs(median) < np.log(LEAST_RATIO) or np.abs(logs - median).max() > np.log1p(TOLERANCE):
        return 1.0
    return round(float(np.exp(np.clip(median, -np.log(LARGEST_RATIO), np.log(LARGEST_RATIO)))), 3)


def square_crops(
    images: torch.Tensor, features: torch.Tensor, step: int, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts a square at a random place out of every image of a batch, and the same out of its features.

    A step of training then costs the same whatever the aspect. A UNet without attention sees no more of an image at once.

    Args:
        images: `(B, C, H, W)`.
        features: `(B, D, h, w)`, on a grid with the images' aspect.
        step: pixels; places are multiples of it, which must be whole positions of the grid.
        generator: of the places, on the CPU.

    Returns:
        Images `(B, C, S, S)` and features `(B, D, s, s)`, S being the shorter side; squares as they are.
    """
    height, width = images.shape[-2:]
    if height == width:
        return images, features
    side, stride = min(height, width), height // features.shape[-2]
    # On the CPU, so that nothing waits for the device
    places = torch.randint((max(height, width) - side) // step + 1, (len(images),), generator=generator)

    def cut(values: torch.Tensor, start: int, length: int) -> torch.Tensor:
        return values[:, start : start + length] if height > width else values[..., start : start + length]

    starts = (step * places).tolist()
    cut_images = [cut(image, start, side) for image, start in zip(images, starts, strict=True)]
    cut_features = [cut(values, start // stride, side // stride) for values, start in zip(features, starts, strict=True)]
    return torch.stack(cut_images), torch.stack(cut_features)
