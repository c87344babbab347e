"""What changed in the images, in an inspector's words: simple statistics of recent parts beside those of reference parts.

This explains an alarm and raises none: the statistics are looked at after the alarm, and differ for harmless reasons, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.stats import mannwhitneyu

from ..imaging.image_statistics import look_of, statistics_of
from ..scoring.reference_parts import LEAST_PARTS, ReferenceParts
from .saved_values import number, text

RECENT_PARTS = 50  # the latest ones, whose images explain an alarm
SIGNIFICANCE = 0.01  # of all statistics together
# By the names of [`diffad.imaging.image_statistics`], the words for more and for less of it.
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

    @classmethod
    def restored(cls, saved: dict) -> "Suggestion":
        """Of the fields by their names.

        Raises:
            ValueError, TypeError: if they are damaged.
        """
        return cls(**{name: (text if name in ("name", "words") else number)(value) for name, value in saved.items()})

    def __str__(self) -> str:
        return f"{self.words} ({self.name} {self.before:.3g} before, {self.now:.3g} now)"


def suggested_changes(reference: ReferenceParts, images: Iterable[Image.Image]) -> list[Suggestion]:
    """What changed in RGB images of the latest parts beside a model's calibration images."""
    recent = [statistics_of(look_of(image), reference.mean_square) for image in images]
    return suggestions(reference.statistics_by_name, recent)


def suggestions(reference: Sequence[dict[str, float]], recent: Sequence[dict[str, float]]) -> list[Suggestion]:
    """Statistics that differ between two sets of parts beyond chance, the most different first; none from too few parts.

    Args:
        reference, recent: of [`~diffad.imaging.image_statistics.statistics_of`], with the same names.
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
