"""What thresholds say of scores: verdicts, p-values and masks, with a guarantee for good parts."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..deprecation import accepts_former_names
from ..imaging.array_maps import normal_level, region_at
from . import conformal
from .config import ScoreConfig
from .defect_masks import defect_mask
from .reference_parts import ReferenceParts


class Verdicts(NamedTuple):
    """Verdicts on N images; the fields are those of [`DiffADOutput`]."""

    p_values: np.ndarray
    is_defective: np.ndarray
    masks: list[np.ndarray]
    false_alarm_rates: np.ndarray
    image_thresholds: np.ndarray
    pixel_thresholds: np.ndarray


class Judging(ABC):
    """What a calibration says of scores and maps, as arrays; the pipeline's and an exported model's calibrations share it."""

    config: ScoreConfig  # or a mapping of its settings by attributes

    @property
    @abstractmethod
    def images_per_category(self) -> list[int]:
        """Calibration images behind the thresholds of each category; one number where there is one category."""

    @property
    @abstractmethod
    def region(self) -> np.ndarray | None:
        """Region of interest, bool `(height, width)`; None is the whole image."""

    @abstractmethod
    def calibration_scores_of(self, category: int = 0) -> np.ndarray:
        """Ascending scores of the calibration images behind a category's thresholds."""

    @abstractmethod
    def calibration_maxima_of(self, category: int = 0) -> np.ndarray:
        """Ascending highest pixels of the same images' anomaly maps."""

    @abstractmethod
    def single_scores_of(self, category: int = 0) -> np.ndarray | None:
        """Where the thresholds count groups of images, ascending scores of one image drawn of each; None where they don't.

        Single images of production are compared with these; see [`diffad.scoring.drawn_images`].
        """

    @abstractmethod
    def reference_parts(self, category: int = 0) -> ReferenceParts | None:
        """What the same images look like, of groups those of `single_scores_of`, for the monitor; None where not kept."""

    @accepts_former_names(class_labels="categories")
    def p_values(self, scores: np.ndarray, categories: Sequence[int] | None = None) -> np.ndarray:
        """Conformal p-values `(N,)` of scores `(N,)`, each among the calibration scores of its category."""
        of_image = np.zeros(len(scores), dtype=int) if categories is None else np.asarray(categories)
        p_values = np.empty(len(scores))
        for category in np.unique(of_image):
            chosen = of_image == category
            p_values[chosen] = conformal.p_values(self.calibration_scores_of(category), scores[chosen])
        return p_values

    @accepts_former_names(class_label="category")
    def supported_rate(self, false_alarm_rate: float | None = None, category: int = 0) -> float:
        """The false-alarm rate that a category's thresholds are set for: a requested one, or for None 5 %.

        With too few calibration images for 5 %, None is the smallest rate that they support, and a warning says so. Of several
        categories each has its own n, so that a small one coarsens no other.

        Raises:
            ValueError: if there are no calibration images, or too few for the requested rate, or it does not lie in (0, 1).
        """
        n = self.images_per_category[category]
        rate = conformal.default_rate(n) if false_alarm_rate is None else false_alarm_rate
        conformal.check_supported(n, rate)
        if false_alarm_rate is None and rate > conformal.DEFAULT_FALSE_ALARM_RATE:
            of_category = f" of category {category}" if len(self.images_per_category) > 1 else ""
            needed = conformal.images_needed(conformal.DEFAULT_FALSE_ALARM_RATE, self.config.statistics_share)
            warnings.warn(
                f"{n} calibration images{of_category} behind the thresholds guarantee a rate of {rate:.3g} at best: "
                f"that is used in place of {conformal.DEFAULT_FALSE_ALARM_RATE}, which needs {needed} (see pipe.calibrate)",
                stacklevel=3,  # the caller, beyond what takes former names
            )
        return rate

    @accepts_former_names(class_labels="categories")
    def supported_rates(
        self, false_alarm_rate: float | None = None, categories: Iterable[int] | None = None
    ) -> dict[int, float]:
        """[`~Calibration.supported_rate`] of each of the categories; None is all, because any may be recognised."""
        chosen = range(len(self.images_per_category)) if categories is None else dict.fromkeys(categories)
        return {category: self.supported_rate(false_alarm_rate, category) for category in chosen}

    def rates(self, false_alarm_rate: float | None, categories: Sequence[int] | None, count: int) -> np.ndarray:
        """`(count,)`, the false-alarm rate of each image: [`~Calibration.supported_rate`] of its category."""
        of_image = [0] * count if categories is None else categories
        supported = self.supported_rates(false_alarm_rate, of_image)
        return np.array([supported[category] for category in of_image])

    def thresholds(self, rates: np.ndarray, categories: Sequence[int] | None) -> np.ndarray:
        """`(2, N)`: the image and the pixel threshold for each of N images, those of its category at its rate."""
        keys = list(zip(rates.tolist(), [0] * len(rates) if categories is None else categories, strict=True))
        of_key = {key: (self.image_threshold(*key), self.pixel_threshold(*key)) for key in set(keys)}
        return np.array([of_key[key] for key in keys]).T

    def judge(
        self,
        image_scores: np.ndarray,
        anomaly_maps: Sequence[np.ndarray],
        rates: np.ndarray,
        categories: Sequence[int] | None,
        unknown: np.ndarray,
    ) -> Verdicts:
        """What the thresholds of each image's category say of N images at their false-alarm rates.

        Args:
            image_scores, rates: `(N,)`.
            anomaly_maps: N maps `(height, width)` of any size.
            categories: category index of each image, where there are several.
            unknown: `(N,)` bool; a part of an unknown product is never good.

        Raises:
            ValueError: if a score is not finite.
        """
        check_finite(image_scores)
        image_thresholds, pixel_thresholds = self.thresholds(rates, categories)
        is_defective = (image_scores > image_thresholds) | unknown
        of_images = zip(anomaly_maps, pixel_thresholds.tolist(), is_defective.tolist(), strict=True)
        return Verdicts(
            p_values=self.p_values(image_scores, categories),
            is_defective=is_defective,
            masks=[self.mask(*of_image) for of_image in of_images],
            false_alarm_rates=rates,
            image_thresholds=image_thresholds,
            pixel_thresholds=pixel_thresholds,
        )

    def mask(self, anomaly_map: np.ndarray, threshold: float, is_defective: bool) -> np.ndarray:
        """Defective pixels, bool, of a map `(height, width)` of any size, in the region of interest.

        Where the verdict has terms of its own the mask follows it: a part that is called good has none, and one that is called
        defective has some, around its highest pixels even where none exceeds the threshold.

        Raises:
            ValueError: if the region of interest has no pixel at that size.
        """
        values = np.where(region_at(self.region, anomaly_map.shape), anomaly_map, np.float32(-np.inf))
        if self.config.verdict:
            if not is_defective:
                return np.zeros(anomaly_map.shape, dtype=bool)
            threshold = min(threshold, float(np.nextafter(values.max(), -np.inf, dtype=values.dtype)))
        return defect_mask(values, threshold, self.config.mask_edge, normal_level(threshold))

    @accepts_former_names(class_label="category")
    def image_threshold(self, false_alarm_rate: float, category: int = 0) -> float:
        """Scores above it are called defective; a good part exceeds it with at most the given probability."""
        return conformal.conformal_threshold(self.calibration_scores_of(category), false_alarm_rate)

    @accepts_former_names(class_label="category")
    def pixel_threshold(self, false_alarm_rate: float, category: int = 0) -> float:
        """Pixels above it are called defective; a good part has any such pixel with at most the given probability."""
        return conformal.conformal_threshold(self.calibration_maxima_of(category), false_alarm_rate)


def check_finite(image_scores: np.ndarray) -> None:
    """Raises ValueError naming the first of the scores `(N,)` that is not finite: it would pass for normal."""
    broken = np.flatnonzero(~np.isfinite(image_scores))
    if len(broken):
        raise ValueError(f"the score of image {broken[0]} is not finite; use float32 or bfloat16 weights")
