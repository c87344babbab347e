"""Reading images of any kind as 8-bit RGB, or refusing them with an error that names the file."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
MIN_SIDE = 8  # pixels; below that there is nothing to inspect


class ImageError(ValueError):
    """An image or mask that can't be used; the message names it and the remedy."""


def read_image(path: str | Path) -> Image.Image:
    """Decodes an image file completely, as it is meant to be seen: EXIF rotation applied, 8-bit RGB.

    Raises:
        ImageError: if the file is missing, unreadable, truncated, too small or too large.
    """
    return to_rgb(_decode(path), str(path))


def read_mask(path: str | Path) -> np.ndarray:
    """Decodes a ground-truth mask to `(height, width)` float32 in [0, 1], 1 on defects.

    A mask stored as 0/1 or 0/255 reads the same. One without bright levels (all below 128) holds class labels 1, 2, ..., each
    of them a defect; in any other, levels in between are soft edges.
    """
    return mask_levels(_decode(path))


def mask_levels(image: Image.Image) -> np.ndarray:
    """A decoded mask as [`read_mask`] returns it."""
    levels = np.asarray(_flatten(ImageOps.exif_transpose(image)).convert("L"), dtype=np.float32)
    return np.minimum(levels, 1) if levels.max() < 128 else levels / levels.max()


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Converts any Pillow mode to 8-bit RGB.

    16-bit grey levels are scaled from their full range, transparent pixels are laid on black, palettes are resolved.

    Raises:
        ImageError: for floating-point images, whose range is unknown, and for sizes outside the limits.
    """
    if min(image.size) < MIN_SIDE:
        raise ImageError(f"{name}: {image.width}x{image.height} pixels is too small, at least {MIN_SIDE} per side are needed")
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point image of unknown range; save it with 8 or 16 bits")
    try:
        image = ImageOps.exif_transpose(image)  # decodes what Pillow has only opened so far
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{name}: damaged image ({error})") from error
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError(f"{name}: 32-bit image with values outside 0..65535; save it with 8 or 16 bits")
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    return _flatten(image).convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """Lays an image with transparent pixels on black; returns any other as it is."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image
    image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)


def _decode(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            # Pillow only warns up to twice this size, and making that an error is not safe in threads.
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return image
    except IsADirectoryError as error:
        raise ImageError(f"{path}: is a folder, not an image") from error
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; cut it into tiles first") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a readable image; remove it or save it anew") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: damaged image ({error}); remove it or save it anew") from error
