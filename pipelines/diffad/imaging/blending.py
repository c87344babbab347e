"""A change at the model's resolution, carried over to an image of any size."""

import numpy as np
import torch
from PIL import Image

from ..system.autocast import without_autocast
from .maps import resize_map

BACK_PROJECTIONS = 10  # leaves half a grey level in the mean, of about six


def blend_change(original: Image.Image, before: torch.Tensor, after: torch.Tensor, replaced: torch.Tensor) -> Image.Image:
    """Carries a change at the model's resolution over to the image at its own size.

    Where nothing changed the original stays, bit for bit. Where it changed a little it keeps detail that the model's resolution
    lacks; where it was replaced none of it remains. What interpolation blurs is put back by iterative back-projection (Irani &
    Peleg 1991), so that the model, which sees the result resized again, sees what it has made and not a blurred copy.

    Args:
        original: RGB image of any size.
        before, after: `(3, H, W)` in [-1, 1] at the model's resolution.
        replaced: `(1, H, W)` in [0, 1].
    """
    if torch.equal(after, before) and not replaced.any():
        return original.copy()
    size, model_size = (original.height, original.width), tuple(before.shape[-2:])
    levels = torch.from_numpy(np.array(original, dtype=np.float32)).permute(2, 0, 1)  # (3, h, w)
    before, after, replaced = (x.float().cpu() for x in (before, after.clamp(-1, 1), replaced))
    touched = ((after != before).any(dim=0, keepdim=True) | (replaced > 0)).float()  # (1, H, W)
    touched = resize_map(touched, size) > 0  # (1, h, w)
    changed = levels + resize_map(after - before, size) * 127.5
    target = (after + 1) * 127.5  # (3, H, W)
    pixels = torch.lerp(changed, resize_map(target, size), resize_map(replaced, size))
    lost = target - resize_map(pixels, model_size)  # (3, H, W)
    pixels = (pixels + touched * resize_map(_back_project(lost, size), size)).clamp(0, 255)
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())


def _back_project(levels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(3, H, W)` levels that become the given ones when they are brought to `size` and back."""
    rows, columns = (_round_trip(*lengths) for lengths in zip(levels.shape[-2:], size, strict=True))  # (H, H), (W, W)
    found = torch.zeros_like(levels)
    with without_autocast(levels.device.type):
        for _ in range(BACK_PROJECTIONS):
            found = found + levels - rows @ found @ columns.T
    return found


def _round_trip(length: int, other: int) -> torch.Tensor:
    """What resizing does to one side of `length` pixels on the way to `other` ones and back, as a matrix."""
    each = torch.eye(length)[None]  # (1, length, length): every column has one pixel
    return resize_map(resize_map(each, (other, length)), (length, length))[0]
