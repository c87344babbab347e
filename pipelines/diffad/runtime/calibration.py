"""Thresholds, p-values and masks of an exported model in one precision."""

from collections.abc import Callable, Sequence

import numpy as np

from ..scoring.config import ScoreConfig
from ..scoring.judging import Judging
from ..scoring.reference_parts import ReferenceParts
from .description import CalibrationScores


class StoredCalibration(Judging):
    """Judges by what calibration images scored in the same runtime and precision.

    Args:
        config: settings of the score.
        of_categories: what the calibration images of each category score.
        region: of interest, bool `(height, width)`; None is the whole image.
        references: reads what a category's calibration images look like.
    """

    def __init__(
        self,
        config: ScoreConfig,
        of_categories: Sequence[CalibrationScores],
        region: np.ndarray | None,
        references: Callable[[int], ReferenceParts | None] = lambda category: None,
    ):
        self.config, self._references = config, references
        self.of_categories = list(of_categories)
        self._region = region

    is_fitted = True

    @property
    def images_per_category(self) -> list[int]:
        """Calibration images behind the thresholds of each category."""
        return [len(category.scores) for category in self.of_categories]

    @property
    def region(self) -> np.ndarray | None:
        """The region of interest, bool `(height, width)`; None is the whole image."""
        return self._region

    def calibration_scores_of(self, category: int = 0) -> np.ndarray:
        """Image scores `(n,)` of a category's calibration images, ascending."""
        return np.array(self.of_categories[category].scores, dtype=np.float32)

    def calibration_maxima_of(self, category: int = 0) -> np.ndarray:
        """Highest pixels `(n,)` of the anomaly maps of these images, ascending."""
        return np.array(self.of_categories[category].maxima, dtype=np.float32)

    def single_scores_of(self, category: int = 0) -> np.ndarray | None:
        """Image scores `(n,)`, ascending, of one image drawn of each of a category's groups; None where there are none."""
        scores = self.of_categories[category].single_scores
        return None if scores is None else np.array(scores, dtype=np.float32)

    def reference_parts(self, category: int = 0) -> ReferenceParts | None:
        """What these images look like, for the monitor; None where the folder does not hold it."""
        return self._references(category)

    @property
    def outside_level(self) -> float:
        """Level of anomaly maps outside the region of interest: 0, or where thresholds may be negative one below them all."""
        values = [c.maxima if self.config.verdict else c.scores for c in self.of_categories]
        lowest = min(map(min, values))
        return 0.0 if lowest > 0 else lowest - 1
