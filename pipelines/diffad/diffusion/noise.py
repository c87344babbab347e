"""Seeded noise that an image's neighbours cannot change."""

from functools import lru_cache

import torch


@lru_cache(maxsize=32)
def timestep_noise(shape: tuple[int, int, int], timestep: int, seed: int) -> torch.Tensor:
    """Standard normal noise `(channels, height, width)` for one timestep, float32 on the CPU; not to be changed in place.

    The draw depends on seed, timestep and shape only, and every image of a run gets the same one: scores then depend on
    nothing but the image, on every device, and calibration images and new parts are exchangeable under it.
    """
    # The generator reads 32 bits of its seed.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + timestep) % 2**32)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
