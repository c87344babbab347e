"""Images as tensors: levels to the model's range and back, tiles."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 grey levels to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def single_batch(pixels: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """One image `(H, W, 3)` uint8 at the model's resolution as a batch `(1, 3, H, W)` in [-1, 1]."""
    return to_model_range(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].to(device))


def to_pil(image: torch.Tensor) -> Image.Image:
    """One image `(3, H, W)` in [-1, 1], clamped and rounded to 8 bits."""
    levels = ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def cut(images: torch.Tensor, corners: Sequence[tuple[int, int]], tile: tuple[int, int]) -> torch.Tensor:
    """Tiles `(B * len(corners), C, *tile)` of images `(B, C, H, W)`, those of one image behind each other."""
    return torch.stack([images[..., y : y + tile[0], x : x + tile[1]] for y, x in corners], dim=1).flatten(0, 1)
