"""Large images as overlapping tiles, and maps of tiles as one map without seams: pure functions."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Map = TypeVar("Map")


def working_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """`(height, width)` at which an image is scored: its shorter side brought to `short_side` pixels, its aspect kept."""
    factor = short_side / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def scored_size(height: int, width: int, image_size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """`(height, width)` at which an image is scored: the model's resolution, or for a model of tiles its working size."""
    return image_size if short_side is None else working_size((height, width), short_side)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of tiles that cover `length` pixels evenly from end to end.

    As few tiles as make neighbours share at least `overlap` of a tile.

    Raises:
        ValueError: if a tile is larger than the image, or the overlap is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"tile_overlap must lie in [0, 1), got {overlap}")
    if tile > length:
        raise ValueError(f"tiles of {tile} pixels are larger than an image of {length}")
    steps = math.ceil((length - tile) / max(1, math.floor(tile * (1 - overlap))))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)] if steps else [0]


def tile_corners(size: tuple[int, int], tile: tuple[int, int], overlap: float) -> list[tuple[int, int]]:
    """Upper left corners `(y, x)` of the tiles of an image, row by row; sizes are `(height, width)`."""
    return [(y, x) for y in tile_starts(size[0], tile[0], overlap) for x in tile_starts(size[1], tile[1], overlap)]


def window(tile: tuple[int, int]) -> np.ndarray:
    """Raised-cosine weight of every pixel of a tile, `(*tile)`: highest in the middle, positive and small at the border."""
    rows, columns = (np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in tile)
    return rows[:, None] * columns


def blend_weights(size: tuple[int, int], corners: Sequence[tuple[int, int]], tile: tuple[int, int]) -> np.ndarray:
    """`(len(corners), *tile)`, the share of each tile in each of its pixels: over the tiles at a pixel they sum to one."""
    total, of_tile = np.zeros(size), window(tile)
    for y, x in corners:
        total[y : y + tile[0], x : x + tile[1]] += of_tile
    shares = [of_tile / total[y : y + tile[0], x : x + tile[1]] for y, x in corners]
    return np.stack(shares).astype(np.float32)


def add_tiles(canvas: Map, maps: Map, weights: Map, corners: Sequence[tuple[int, int]]) -> None:
    """Adds weighted maps `(T, *tile)` at their corners to a map `(H, W)`, in place; all arrays or all tensors."""
    for tile_map, weight, (y, x) in zip(maps, weights, corners, strict=True):
        canvas[y : y + weight.shape[0], x : x + weight.shape[1]] += weight * tile_map
