"""What changed in the images, in an inspector's words: simple statistics of recent parts beside those of reference parts.

This explains an alarm and raises none: the statistics are looked at after the alarm, and differ for harmless reasons, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import laplace
from scipy.stats import mannwhitneyu

LONGEST_SIDE = 512  # pixels; larger images are reduced, so that statistics take milliseconds
POSITION_SIDE = 128  # pixels of the squares whose positions are compared
SIGNIFICANCE = 0.01  # of all statistics together
LEAST_PARTS = 8  # in each set
LUMA = np.array([0.299, 0.587, 0.114])
# Name, and the words for more and for less of it.
WORDS = {
    "brightness": ("brighter", "darker"),
    "contrast": ("more contrast", "less contrast"),
    "sharpness": ("sharper, or more noise", "blurred, or less noise"),
    "red-green balance": ("more red", "more green"),
    "blue-yellow balance": ("more blue", "more yellow"),
    "horizontal position": ("moved right", "moved left"),
    "vertical position": ("moved down", "moved up"),
}


@dataclass(frozen=True)
class Suggestion:
    """One statistic that differs.

    Args:
        name, words: of the statistic, and of its change.
        before, now: medians of reference and recent parts, in grey levels (brightness, contrast, balances), squared grey levels
            (sharpness: variance of the Laplacian) or per cent of the image's width or height (positions).
        deviations: difference of the medians in robust standard deviations of the reference parts (1.4826 MAD).
        p_value: of Mann and Whitney's test, two-sided.
    """

    name: str
    words: str
    before: float
    now: float
    deviations: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.words} ({self.name} {self.before:.3g} before, {self.now:.3g} now)"


def statistics_of(image: Image.Image, mean_square: np.ndarray | None = None) -> dict[str, float]:
    """Statistics by the names of [`WORDS`]; positions only where there is a mean image to compare with.

    Args:
        image: RGB.
        mean_square: `(128, 128)` of [`position_square`], mean over reference parts.
    """
    reduced = image.copy()
    reduced.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(reduced, dtype=float)
    grey = pixels @ LUMA
    red, green, blue = pixels.mean(axis=(0, 1))
    found = {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "sharpness": float(laplace(grey, mode="nearest").var()),
        "red-green balance": float(red - green),
        "blue-yellow balance": float(blue - (red + green) / 2),
    }
    if mean_square is not None:
        down, right = displacement(mean_square, position_square(image))
        found["horizontal position"] = 100 * right / POSITION_SIDE
        found["vertical position"] = 100 * down / POSITION_SIDE
    return found


def position_square(image: Image.Image) -> np.ndarray:
    """`(128, 128)` grey levels of the whole image, squeezed to a square."""
    return np.asarray(image.convert("L").resize((POSITION_SIDE, POSITION_SIDE), Image.Resampling.BILINEAR), dtype=float)


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


def suggestions(reference: Sequence[dict[str, float]], recent: Sequence[dict[str, float]]) -> list[Suggestion]:
    """Statistics that differ between two sets of parts beyond chance, the most different first; none from too few parts.

    Args:
        reference, recent: of [`statistics_of`], with the same names.
    """
    if min(len(reference), len(recent)) < LEAST_PARTS:
        return []
    found = []
    for name in reference[0]:
        before, now = (np.array([statistics[name] for statistics in parts]) for parts in (reference, recent))
        p_value = float(mannwhitneyu(before, now, method="asymptotic").pvalue) if np.ptp([*before, *now]) > 0 else 1.0
        if p_value <= SIGNIFICANCE / len(reference[0]):
            change = float(np.median(now) - np.median(before))
            spread = 1.4826 * float(np.median(np.abs(before - np.median(before))))
            deviations = change / max(spread, 1e-9) if change else 0.0
            words = WORDS[name][int(now.mean() < before.mean())]
            found.append(Suggestion(name, words, float(np.median(before)), float(np.median(now)), deviations, p_value))
    return sorted(found, key=lambda suggestion: -abs(suggestion.deviations))
