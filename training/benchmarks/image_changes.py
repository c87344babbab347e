"""Images as cameras and lamps change them: each function gives a new image of the same size."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Change = Callable[[Image.Image], Image.Image]


def with_brightness(image: Image.Image, factor: float) -> Image.Image:
    """All grey levels times a factor."""
    return ImageEnhance.Brightness(image).enhance(factor)


def with_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Grey levels in [0, 1] to the power of gamma: below 1 lifts the dark ones."""
    levels = 255 * (np.arange(256) / 255) ** gamma
    return image.point(np.tile(levels.round().astype(int), 3).tolist())


def under_lamp(image: Image.Image, difference: float) -> Image.Image:
    """Lit more from one side: brightness runs from 1 - difference at the left to 1 + difference at the right."""
    factors = np.linspace(1 - difference, 1 + difference, image.width)
    pixels = np.asarray(image, dtype=np.float64) * factors[:, None]
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def blurred(image: Image.Image, pixels: float) -> Image.Image:
    """Blurred by a Gaussian of that standard deviation."""
    return image.filter(ImageFilter.GaussianBlur(pixels))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after compression."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def shifted(image: Image.Image, pixels: int) -> Image.Image:
    """Moved right and down; what comes in is the mirrored border."""
    padded = np.pad(np.asarray(image), ((pixels, 0), (pixels, 0), (0, 0)), mode="symmetric")
    return Image.fromarray(padded[: image.height, : image.width])


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    """Turned about its middle, with what lies outside taken from its mirrored margin."""
    margin = min(image.size) // 8
    padding = ((margin, margin), (margin, margin), (0, 0))
    padded = Image.fromarray(np.pad(np.asarray(image), padding, mode="reflect")).rotate(degrees, Image.Resampling.BICUBIC)
    return padded.crop((margin, margin, margin + image.width, margin + image.height))
