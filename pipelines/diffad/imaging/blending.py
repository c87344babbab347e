"""A change at the model's resolution, carried over to an image of any size."""

import numpy as np
import torch
from PIL import Image

from ..system.autocast import without_autocast
from .maps import resize_map

BACK_PROJECTIONS = 10  # leaves half a grey level in the mean, of about six


def blend_change(original: Image.Image, before: torch.Tensor, after: torch.Tensor, replaced: torch.Tensor) -> Image.Image:
    """[`carry_over`] for one RGB image of any size; where nothing changed the original stays, bit for bit.

    Args:
        original: RGB image of any size.
        before, after: `(3, H, W)` in [-1, 1] at the model's resolution.
        replaced: `(1, H, W)` in [0, 1].
    """
    if torch.equal(after, before) and not replaced.any():
        return original.copy()
    levels = torch.from_numpy(np.array(original, dtype=np.float32)).permute(2, 0, 1)  # (3, h, w)
    pixels = carry_over(levels[None], *(x[None].float().cpu() for x in (before, after, replaced)))[0]
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())


def carry_over(levels: torch.Tensor, before: torch.Tensor, after: torch.Tensor, replaced: torch.Tensor) -> torch.Tensor:
    """Images at another size, with a change made at the model's resolution, `(B, 3, h, w)` grey levels in 0..255.

    Where nothing changed the images stay. Where they changed a little they keep detail that the model's resolution lacks; where
    they were replaced none of it remains. What interpolation blurs is put back by iterative back-projection (Irani & Peleg
    1991), so that the model, which sees the result resized again, sees what it has made and not a blurred copy.

    Args:
        levels: `(B, 3, h, w)` grey levels in 0..255, the unchanged images.
        before, after: `(B, 3, H, W)` in [-1, 1] at the model's resolution.
        replaced: `(B, 1, H, W)` in [0, 1].
    """
    size, model_size, after = tuple(levels.shape[-2:]), tuple(before.shape[-2:]), after.clamp(-1, 1)
    touched = ((after != before).any(dim=1, keepdim=True) | (replaced > 0)).float()  # (B, 1, H, W)
    touched = _resize(touched, size) > 0  # (B, 1, h, w)
    changed = levels + _resize(after - before, size) * 127.5
    target = (after + 1) * 127.5  # (B, 3, H, W)
    pixels = torch.lerp(changed, _resize(target, size), _resize(replaced, size))
    lost = target - _resize(pixels, model_size)  # (B, 3, H, W)
    return (pixels + touched * _resize(_back_project(lost, size), size)).clamp(0, 255)


def _resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[`resize_map`] of every channel of images `(B, C, h, w)`."""
    return resize_map(images.flatten(0, 1), size).unflatten(0, images.shape[:2])


def _back_project(levels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(B, 3, H, W)` levels that become the given ones when they are brought to `size` and back."""
    sides = zip(levels.shape[-2:], size, strict=True)
    rows, columns = (_round_trip(*lengths).to(levels) for lengths in sides)  # (H, H), (W, W)
    found = torch.zeros_like(levels)
    with without_autocast(levels.device.type):
        for _ in range(BACK_PROJECTIONS):
            found = found + levels - rows @ found @ columns.T
    return found


def _round_trip(length: int, other: int) -> torch.Tensor:
    """What resizing does to one side of `length` pixels on the way to `other` ones and back, as a matrix."""
    each = torch.eye(length)[None]  # (1, length, length): every column has one pixel
    return resize_map(resize_map(each, (other, length)), (length, length))[0]
