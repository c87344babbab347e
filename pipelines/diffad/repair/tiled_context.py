"""Methods that change whole images, for images larger than the model's resolution: every network sees tiles of them."""

from collections.abc import Callable
from dataclasses import replace

import torch

from ..imaging.tensors import cut
from ..scoring.tiling import add_tiles, blend_weights, tile_corners
from .context import RepairContext


def over_tiles(context: RepairContext, overlap: float) -> RepairContext:
    """The context for images `(B, 3, H, W)` of any size from the model's resolution on, cut into the tiles of the score.

    Distances are those of all tiles, one below the other, so that Eq. 12 is the mean over the tiles. Denoised images are
    blended over the tiles, as maps are in the score. Noise is of the image's size, so that tiles agree where they overlap.

    Args:
        overlap: share of a tile that neighbours have in common at least.
    """

    def corners_of(images: torch.Tensor) -> list[tuple[int, int]]:
        return tile_corners(tuple(images.shape[-2:]), context.size, overlap)

    def of_tiles(images: torch.Tensor) -> RepairContext:
        index = torch.arange(len(images), device=images.device)
        return context.select(index.repeat_interleave(len(corners_of(images))))

    def distance(images: torch.Tensor) -> torch.Tensor:
        distances = of_tiles(images).distance(cut(images, corners_of(images), context.size))  # (B * T, h, w)
        return distances.view(len(images), -1, distances.shape[-1])

    def blended(denoise: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """`denoise`, which takes tiles `(B * T, 3, *size)`, over images `(B, 3, H, W)`."""
        corners = corners_of(images)
        weights = blend_weights(tuple(images.shape[-2:]), corners, context.size)
        tiles = denoise(cut(images, corners, context.size)).unflatten(0, (len(images), len(corners)))
        canvas = images.new_zeros(*images.shape[-2:], *images.shape[:2])  # (H, W, B, 3)
        add_tiles(canvas, tiles.permute(1, 3, 4, 0, 2), torch.from_numpy(weights).to(images)[..., None, None], corners)
        return canvas.permute(2, 3, 0, 1)

    def predict_x0(images: torch.Tensor, t: int) -> torch.Tensor:
        return blended(lambda tiles: of_tiles(images).predict_x0(tiles, t), images)

    def reverse_step(images: torch.Tensor, t: int, length: int | None, noise: torch.Tensor | None) -> torch.Tensor:
        noise = None if noise is None else cut(noise, corners_of(images), context.size)
        return blended(lambda tiles: of_tiles(images).reverse_step(tiles, t, length, noise), images)

    return replace(
        context,
        select=lambda index: over_tiles(context.select(index), overlap),
        distance=distance,
        predict_x0=predict_x0,
        reverse_step=reverse_step,
    )
