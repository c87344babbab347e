"""Simple statistics of one image, by which a person would say what changed: light, contrast, sharpness, colour, position."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import laplace

LONGEST_SIDE = 512  # pixels; larger images are reduced, so that statistics take milliseconds
POSITION_SIDE = 128  # pixels of the squares whose positions are compared
LUMA = np.array([0.299, 0.587, 0.114])
STATISTICS = (
    *("brightness", "contrast", "sharpness", "red-green balance", "blue-yellow balance"),
    *("horizontal position", "vertical position"),
)


def reduced(image: Image.Image) -> Image.Image:
    """All that statistics see of an RGB image: a copy of at most 512 x 512 pixels."""
    factor = max(image.size) // LONGEST_SIDE
    small = image.reduce(factor) if factor > 1 else image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
    return small


class Look(NamedTuple):
    """What is kept of an image until the mean image is known, which positions are relative to.

    Args:
        levels: statistics by the first five names of `STATISTICS`.
        square: of [`position_square`].
    """

    levels: dict[str, float]
    square: np.ndarray


def look_of(image: Image.Image) -> Look:
    """The look of an RGB image."""
    small = reduced(image)
    pixels = np.asarray(small, dtype=float)
    grey = pixels @ LUMA
    red, green, blue = pixels.mean(axis=(0, 1))
    levels = {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "sharpness": float(laplace(grey, mode="nearest").var()),
        "red-green balance": float(red - green),
        "blue-yellow balance": float(blue - (red + green) / 2),
    }
    return Look(levels, position_square(small))


def statistics_of(look: Look, mean_square: np.ndarray) -> dict[str, float]:
    """Statistics of one image by the names of `STATISTICS`, in their order.

    Args:
        mean_square: `(128, 128)`, mean square of reference parts.
    """
    down, right = displacement(mean_square, look.square)
    positions = {"horizontal position": 100 * right / POSITION_SIDE, "vertical position": 100 * down / POSITION_SIDE}
    return look.levels | positions


def position_square(image: Image.Image) -> np.ndarray:
    """`(128, 128)` uint8, grey levels of the whole image, squeezed to a square."""
    return np.asarray(image.convert("L").resize((POSITION_SIDE, POSITION_SIDE), Image.Resampling.BILINEAR))


def displacement(reference: np.ndarray, moved: np.ndarray) -> tuple[int, int]:
    """Pixels `(down, right)` by which an image is moved against another `(side, side)`, by phase correlation.

    Kuglin and Hines 1975. Both are faded out towards their edges, which would correlate otherwise.
    """
    side = len(reference)
    window = np.outer(np.hanning(side), np.hanning(side))
    spectra = [np.fft.rfft2((pixels - pixels.mean()) * window) for pixels in (reference, moved)]
    product = np.conj(spectra[0]) * spectra[1]
    peaks = np.fft.irfft2(product / np.maximum(np.abs(product), 1e-9), s=reference.shape)
    down, right = np.unravel_index(int(peaks.argmax()), peaks.shape)
    return tuple(int(shift) - side * (shift > side // 2) for shift in (down, right))
