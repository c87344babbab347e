"""Masks in image files: ground truth of any kind as pixels that are marked or not, and regions of interest."""

import warnings
from functools import reduce
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops

from .decoding import ImageError, ImageWarning, decode, failures_named
from .orientation import upright
from .reading import has_transparency

# Of 255 levels, or in proportion of 65535:
BRIGHT = 128  # a mask without such a level names kinds of defects: 1, 2, ...
NOISE_FLOOR = 8  # what compression leaves on black
MOST_LEVELS = 16  # beyond that, levels are soft edges
SHARE_BETWEEN, MOST_BETWEEN = 0.1, 0.5  # of the pixels, between black and white: many, and too many for soft edges
LEAST_WHITE = 0.1  # of the marked pixels, where many are between black and white
LOOKS_INVERTED = 0.5  # of the pixels marked


def read_mask(source: str | Path | BinaryIO, name: str | None = None) -> np.ndarray:
    """Decodes a ground-truth mask to `(height, width)` float32, 1 on defects and 0 elsewhere.

    Where pixels are transparent, those that are not are marked, whatever their colour. Else black is unmarked, and

    - of a mask with at most 16 levels every level is a defect: 255, labels 1, 2, ... of kinds of defects, or both 85 and 255.
      Where there are bright levels (128 or more), those up to 8 are noise;
    - of one with more levels these are soft edges, marked from half the highest one on.

    Args:
        source: path, or an open file.
        name: how errors call it; None is the path.

    Raises:
        ImageError: if it can't be decoded, or is neither of these, like a photograph or a heat map.
    """
    name = str(source) if name is None else name
    return marked_pixels(decode(source, name).image, name).astype(np.float32)


def marked_pixels(image: Image.Image, name: str) -> np.ndarray:
    """Pixels that a decoded mask marks, `(height, width)` bool; see [`read_mask`]. Warns if they are most of them."""
    with failures_named(name):
        levels = _levels(image, name)
    pixels = _histogram(levels)
    highest = int(np.flatnonzero(pixels)[-1])
    full = 255 if highest <= 255 else 65535
    is_bright = highest >= full * BRIGHT / 255
    floor = full * NOISE_FLOOR // 255 if is_bright else 0
    count = np.count_nonzero(pixels[floor + 1 :])
    if count <= MOST_LEVELS:
        lowest_marked = floor + 1
    elif is_bright and _has_soft_edges(pixels, highest, floor):
        lowest_marked = (highest + 1) // 2
    else:
        raise ImageError(
            f"{name}: no mask but a picture of {count} grey levels; save it as black with the defective pixels white"
        )
    share = pixels[lowest_marked:].sum() / levels.size
    if share > LOOKS_INVERTED:
        warnings.warn(
            f"{name}: marks {share:.0%} of the image as defective and looks inverted; defects are white, the rest is black",
            ImageWarning,
            stacklevel=2,
        )
    return levels >= lowest_marked


def read_region(source: str | Path | Image.Image) -> np.ndarray:
    """A region of interest as `(height, width)` bool: the brighter half of grey levels is inside.

    Raises:
        ImageError: if it can't be decoded.
    """
    name = "region" if isinstance(source, Image.Image) else str(source)
    with failures_named(name):
        levels = _levels(upright(source) if isinstance(source, Image.Image) else decode(source, name).image, name)
    highest = levels.max()
    return levels > 0 if highest < BRIGHT else levels >= highest / 2


def _histogram(levels: np.ndarray) -> np.ndarray:
    """Number of pixels of each level 0..65535; row by row, because counting takes eight bytes per pixel."""
    return sum(np.bincount(row, minlength=2**16) for row in np.array_split(levels.ravel(), max(1, levels.size // 2**20)))


def _has_soft_edges(pixels: np.ndarray, highest: int, floor: int) -> bool:
    """Whether levels between black and white are those of edges, and not of a picture or of slopes throughout."""
    between = pixels[floor + 1 : highest - floor].sum() / pixels.sum()
    is_mostly_white = pixels[highest - floor :].sum() >= LEAST_WHITE * pixels[(highest + 1) // 2 :].sum()
    return between <= (MOST_BETWEEN if is_mostly_white else SHARE_BETWEEN)


def _levels(image: Image.Image, name: str) -> np.ndarray:
    """`(height, width)` of 8 or 16 bits, 0 where nothing can be marked: of the alpha channel, or the brightest colour."""
    if image.mode in ("LAB", "HSV"):
        raise ImageError(f"{name}: mask with colours as {image.mode}; save it as grey levels")
    if image.mode == "F" or image.mode.startswith("I"):
        return _whole_levels(np.asarray(image), name)
    if has_transparency(image):
        image = image if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") else image.convert("RGBA")
        alpha = image.getchannel(image.getbands()[-1])
        if len(set(alpha.getextrema())) > 1:
            return np.asarray(alpha)
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if image.mode not in ("1", "L"):
        colours = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
        image = reduce(ImageChops.lighter, colours.split()[:3])
    return np.asarray(image.convert("L"))


def _whole_levels(levels: np.ndarray, name: str) -> np.ndarray:
    if levels.dtype.kind == "f":
        levels = np.round(levels * 255 if levels.max() <= 1 else levels)
    if not (levels.min() >= 0 and levels.max() <= 65535):
        raise ImageError(f"{name}: mask with values outside 0..65535; save it with 8 bits")
    return levels.astype(np.uint16)
