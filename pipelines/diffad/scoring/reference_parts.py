"""What production is compared with beside scores: the calibration images behind the thresholds, as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..imaging.image_statistics import STATISTICS, Look, statistics_of

LEAST_PARTS = 8  # from fewer nothing is said of what changed, and their mean picture is nearly one of them


@dataclass(frozen=True)
class ReferenceParts:
    """The n calibration images of one category, of groups one drawn of each, in the order of their ascending scores.

    Args:
        features: `(n, D)` float32, spatial means of the extractor's features.
        statistics: `(n, 7)` float32, by the names of [`diffad.imaging.image_statistics`].
        mean_square: `(128, 128)` float32, their mean [`~diffad.imaging.image_statistics.position_square`]; zeros where n < 8.
    """

    features: np.ndarray
    statistics: np.ndarray
    mean_square: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, looks: Sequence[Look]) -> "ReferenceParts":
        """Of images with features `(n, D)` and these looks."""
        mean_square = np.mean([look.square for look in looks], axis=0)
        statistics = [list(statistics_of(look, mean_square).values()) for look in looks]
        mean_square = mean_square if len(looks) >= LEAST_PARTS else np.zeros_like(mean_square)
        return cls(*(np.asarray(values, dtype=np.float32) for values in (features, statistics, mean_square)))

    def sorted_by(self, scores: np.ndarray) -> "ReferenceParts":
        """The same with images in the order of scores `(n,)` that they have at present."""
        order = np.argsort(scores, kind="stable")
        return ReferenceParts(self.features[order], self.statistics[order], self.mean_square)

    @property
    def statistics_by_name(self) -> list[dict[str, float]]:
        """Statistics of each image."""
        return [dict(zip(STATISTICS, map(float, of_image), strict=True)) for of_image in self.statistics]
