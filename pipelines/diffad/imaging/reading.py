"""Reading images of any kind as 8-bit RGB, or refusing them with an error that names the file."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .decoding import ImageError, ImageWarning, check_pixels, decode, failures_named, stores_16_bit_colours
from .orientation import upright

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
MIN_SIDE = 8  # pixels; below that there is nothing to inspect
STRIP_PIXELS = 2**20  # transparent images are laid on black in strips, which need less memory than the whole
TENTH_OF_16_BITS = 65535 // 10


def read_image(source: str | Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Decodes an image file completely, as it is meant to be seen: EXIF rotation applied, 8-bit RGB.

    Of a file of several pages (TIFF, WebP, animated PNG) the first is read, with a warning; [`page_count`] tells them.

    Args:
        source: path, or an open file.
        name: how errors call it; None is the path.

    Raises:
        ImageError: if the file is missing, unreadable, truncated, too small or too large.
    """
    name = str(source) if name is None else name
    decoded = decode(source, name)
    if decoded.pages > 1:
        warnings.warn(
            f"{name}: holds {decoded.pages} pages, of which the first is used; save the others as files of their own",
            ImageWarning,
            stacklevel=2,
        )
    if decoded.has_16_bit_colours:
        _warn_of_dark_colours(decoded.image, name)
    image = to_rgb(decoded.image, name)
    image.info["pages"] = decoded.pages
    return image


def page_count(image: Image.Image) -> int:
    """Number of pages of the file that [`read_image`] has made an image of."""
    return image.info.get("pages", 1)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Converts any Pillow mode to 8-bit RGB, the right way up; an image that is so already is returned itself.

    16-bit grey levels are scaled from their full range, transparent pixels are laid on black, palettes are resolved.

    Raises:
        ImageError: for floating-point images, whose range is unknown, and for sizes outside the limits.
    """
    if min(image.size) < MIN_SIDE:
        raise ImageError(f"{name}: {image.width}x{image.height} pixels is too small, at least {MIN_SIDE} per side are needed")
    check_pixels(image.size, name)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point image of unknown range; save it with 8 or 16 bits")
    if image.mode in ("LAB", "HSV"):
        raise ImageError(f"{name}: colours as {image.mode}, more likely by damage than by intent; save it as RGB")
    with failures_named(name):
        has_16_bit_colours = stores_16_bit_colours(image)
        image = upright(image)
        if has_16_bit_colours:
            _warn_of_dark_colours(image, name)
        if image.mode.startswith("I"):
            return _scaled_from_16_bits(image, name).convert("RGB")
        if has_transparency(image):
            return _laid_on_black(image)
        return image if image.mode == "RGB" else image.convert("RGB")


def has_transparency(image: Image.Image) -> bool:
    """Whether pixels of an image may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def warn_of_unused_range(brightest: int, name: str) -> None:
    """Warns if an image with levels of 16 bits uses a tenth of them at most."""
    if brightest <= TENTH_OF_16_BITS:
        warnings.warn(
            f"{name}: 16-bit image with no level above {brightest} of 65535, nearly black as it is; if its camera has 10 or "
            "12 bits, multiply its levels by 64 or 16",
            ImageWarning,
            stacklevel=2,
        )


def _warn_of_dark_colours(image: Image.Image, name: str) -> None:
    extrema = np.reshape(image.getextrema(), (-1, 2))
    brightest = max(highest for band, (_, highest) in zip(image.getbands(), extrema) if band.upper() != "A")
    warn_of_unused_range(257 * int(brightest), name)


def _scaled_from_16_bits(image: Image.Image, name: str) -> Image.Image:
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ImageError(f"{name}: 32-bit image with values outside 0..65535; save it with 8 or 16 bits")
    warn_of_unused_range(int(levels.max()), name)
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 65535 / 255 is 257


def _laid_on_black(image: Image.Image) -> Image.Image:
    flat = Image.new("RGB", image.size)
    for box in _strips(image.size):
        strip = image.crop(box)
        strip = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        black = Image.new("RGBA", strip.size, (0, 0, 0, 255))
        flat.paste(Image.alpha_composite(black, strip).convert("RGB"), box)
    return flat


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)
