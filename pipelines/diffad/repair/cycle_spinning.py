"""Denoising in shifted frames, so that neither the network's grid nor the image's border leaves a mark."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def cycle_spin(denoise: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, stride: int, spins: int) -> torch.Tensor:
    """Mean of `denoise` over shifts of the image against the network's grid (Coifman & Donoho 1995).

    Every shift looks at the image in a frame that goes on beyond its borders as in a mirror, because networks pad with zeros
    and are at their worst there.

    Args:
        denoise: takes and gives batches `(B, C, H + stride, W + stride)`.
        images: `(B, C, H, W)`.
        stride: of the network, in pixels: the sides of what it takes are divisible by it.
        spins: how many shifts, by one pixel down and to the right each, around half a stride; no more than `stride` are of use,
            because the grid repeats.
    """
    height, width = images.shape[-2:]
    spins = min(spins, stride)
    total = torch.zeros_like(images)
    for i in range(spins):
        before = stride // 2 - spins // 2 + i
        frame = F.pad(images, (before, stride - before) * 2, mode="reflect")  # (B, C, H + stride, W + stride)
        total += denoise(frame)[..., before : before + height, before : before + width]
    return total / spins
