"""What a report is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from ..counts import ScoreCounts
from .pictures import Pictures


class Outcome(Enum):
    """How a verdict turned out, worst first: against the truth, or, where it is unknown, the verdict itself."""

    MISSED = "missed"
    FALSE_ALARM = "false alarm"
    FOUND = "found"
    PASSED = "passed"
    CALLED_DEFECTIVE = "called defective"
    CALLED_GOOD = "called good"

    @property
    def is_failure(self) -> bool:
        return self in (Outcome.MISSED, Outcome.FALSE_ALARM)


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One image.

    Args:
        name: how the report calls it.
        score: image score, higher is more anomalous.
        p_value: share of good parts expected to score at least as high.
        called_defective: the verdict.
        pictures: draws the image's pictures; called for the gallery's rows only, one at a time.
        is_defective: the truth, or None if nobody knows.
        defect: its defect type.
        file: finds the image's file, by whose digest a verdict can be called wrong; None offers no such button.
        is_unknown: called neither good nor defective, but of an unknown product, which counts as called defective.
    """

    name: str
    score: float
    p_value: float
    called_defective: bool
    pictures: Callable[[], Pictures]
    is_defective: bool | None = None
    defect: str | None = None
    file: Callable[[], Path] | None = None
    is_unknown: bool = False

    @property
    def verdict(self) -> str:
        """Verdict in the words of records of feedback."""
        return "unknown" if self.is_unknown else "defective" if self.called_defective else "good"

    @property
    def outcome(self) -> Outcome:
        """How the verdict compares with the truth."""
        if self.is_defective is None:
            return Outcome.CALLED_DEFECTIVE if self.called_defective else Outcome.CALLED_GOOD
        if self.is_defective:
            return Outcome.FOUND if self.called_defective else Outcome.MISSED
        return Outcome.FALSE_ALARM if self.called_defective else Outcome.PASSED


@dataclass(frozen=True)
class Report:
    """An evaluation, whose rows all have a truth, or a prediction run, where none has.

    Args:
        title: of the page.
        facts: name and value of what to say of model and data.
        rows: at least one image, in any order.
        false_alarm_rate: the requested share of good parts that may be called defective.
        image_threshold, pixel_threshold: above them images and pixels are called defective at that rate.
        calibration_scores: scores of the calibration images that the thresholds come from.
        metrics: of an evaluation, named as by `detection_metrics` and `localization_metrics`, each in [0, 1].
        pixel_counts: of an evaluation with masks, in the order of the rows: gives the localization metrics their confidence
            intervals and the PRO curve.
    """

    title: str
    facts: Mapping[str, str]
    rows: Sequence[ReportRow]
    false_alarm_rate: float
    image_threshold: float
    pixel_threshold: float
    calibration_scores: np.ndarray
    metrics: Mapping[str, float] | None = None
    pixel_counts: ScoreCounts | None = None
