"""How scores are formed and judged: the score's settings, its statistics on good images, and thresholds from them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..deprecation import accepts_former_names, former_name
from ..imaging.maps import normal_level, resize_map
from ..models.float32 import Float32ModelMixin
from . import conformal, terms
from .config import DEFAULT_WEIGHTS, TERMS, ScoreConfig, term_of
from .defect_masks import check_edge, defect_mask

# Settings and tensors as models were saved with diffad 0.1.
FORMER_NAMES = {
    "num_normals": "num_calibration_images",
    "partial_mean": "term_mean",
    "partial_std": "term_std",
    "normal_scores": "calibration_scores",
    "normal_maxima": "calibration_maxima",
}


@dataclass(frozen=True)
class TermStatistics:
    """Count, sum and sum of squares of the pixels of M term maps; those of several images add up to those of all.

    Args:
        count: pixels of each map.
        total, total_square: `(M,)` float64.
    """

    count: int
    total: np.ndarray
    total_square: np.ndarray

    @classmethod
    def of(cls, term_maps: torch.Tensor, inside: torch.Tensor) -> "TermStatistics":
        """Of the pixels of term maps `(M, H, W)` that are `inside`, bool `(H, W)`."""
        pixels = term_maps[:, inside.to(term_maps.device)].cpu().numpy()  # (M, pixels)
        return cls(pixels.shape[1], pixels.sum(axis=1, dtype=np.float64), np.square(pixels, dtype=np.float64).sum(axis=1))

    def __add__(self, other: "TermStatistics") -> "TermStatistics":
        return TermStatistics(self.count + other.count, self.total + other.total, self.total_square + other.total_square)

    @property
    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """`(M,)` each."""
        mean = self.total / self.count
        return mean, np.sqrt(np.maximum(self.total_square / self.count - mean**2, 0))


class Verdicts(NamedTuple):
    """Verdicts on N images; the fields are those of [`DiffADOutput`]."""

    p_values: np.ndarray
    is_defective: np.ndarray
    masks: list[torch.Tensor]
    false_alarm_rates: np.ndarray
    image_thresholds: np.ndarray
    pixel_thresholds: np.ndarray


class Calibration(Float32ModelMixin, ConfigMixin):
    """Settings of the score with the statistics and scores of calibration images under them.

    One calibration image in ten, drawn by `seed` and at least one, gives the statistics of standardisation; the scores of the
    other n give thresholds and p-values by the rules of [`diffad.scoring.conformal`]. Hence these n and a new good part's score
    are exchangeable if the images are, P(false alarm) <= rate and P(p <= rate) <= rate for every rate, for verdicts and masks.

    Args:
        timesteps, ..., seed: as of [`ScoreConfig`].
        roi_size: `(height, width)` of the region of interest; None is the whole image.
        num_calibration_images: n, the images behind the thresholds; 0 before fitting. For a model of several categories one
            number for each, and every category has its own statistics and thresholds under the one score.
        mask_edge: of [`~diffad.scoring.defect_masks.defect_mask`]; training sets its `DEFAULT_EDGE`.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["term_mean", "term_std", "calibration_scores", "calibration_maxima"]

    @register_to_config
    def __init__(
        self,
        timesteps: tuple[int, ...] = (20, 201, 401),
        num_inference_steps: int | None = 250,
        weights: dict[str, float] = DEFAULT_WEIGHTS,
        standardized_terms: tuple[str, ...] = TERMS,
        per_image: bool = False,
        smoothing_sigma: float = 4.0,
        top_k: int = 1,
        short_side: int | None = None,
        tile_overlap: float = 0.25,
        seed: int = 0,
        roi_size: tuple[int, int] | None = None,
        num_calibration_images: int | tuple[int, ...] = 0,
        mask_edge: float | None = None,
    ):
        super().__init__()
        check_edge(mask_edge)
        # The settings of the score; made first, because it checks them
        self.score_config = ScoreConfig(**{field.name: self.config[field.name] for field in fields(ScoreConfig)})
        maps = len(self.term_map_names)
        counts = self.images_per_category
        self.register_buffer("roi", torch.zeros(roi_size, dtype=torch.bool) if roi_size else None)
        # One category after the other, so that one category has the shapes of none; scores ascend within each.
        self.register_buffer("term_mean", torch.zeros(len(counts) * maps))
        self.register_buffer("term_std", torch.ones(len(counts) * maps))
        self.register_buffer("calibration_scores", torch.zeros(sum(counts)))
        self.register_buffer("calibration_maxima", torch.zeros(sum(counts)))

    partial_names = former_name("partial_names", "term_map_names")
    normals_per_class = former_name("normals_per_class", "images_per_category")
    normal_scores = former_name("normal_scores", "calibration_scores")
    normal_maxima = former_name("normal_maxima", "calibration_maxima")
    partial_mean = former_name("partial_mean", "term_mean")
    partial_std = former_name("partial_std", "term_std")
    normal_scores_of = former_name("normal_scores_of", "calibration_scores_of")

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs) -> tuple[dict, dict, dict]:
        return super().extract_init_dict(cls.present_names(config_dict), **kwargs)

    @classmethod
    def present_names(cls, saved: Mapping[str, object]) -> dict[str, object]:
        return {FORMER_NAMES.get(name, name): value for name, value in saved.items()}

    def _fix_state_dict_keys_on_load(self, state_dict: dict) -> None:
        renamed = self.present_names(state_dict)
        state_dict.clear()
        state_dict.update(renamed)

    def check_state(self) -> None:
        super().check_state()
        if not (self.term_std > 0).all():
            raise ValueError("term_std is not positive")
        for name in ("calibration_scores", "calibration_maxima"):
            for of_category in getattr(self, name).split(self.images_per_category):
                if not (of_category.diff() >= 0).all():
                    raise ValueError(f"{name} is not sorted")

    @property
    def term_map_names(self) -> list[str]:
        """Names of all term maps, in the order of the statistics."""
        return self.score_config.term_map_names

    @property
    def images_per_category(self) -> list[int]:
        """Calibration images behind the thresholds of each category; one number where there is one category."""
        counts = self.config.num_calibration_images
        return [counts] if isinstance(counts, int) else list(counts)

    @property
    def is_fitted(self) -> bool:
        return min(self.images_per_category) > 0

    def unfitted(self, **score_settings) -> "Calibration":
        """The same settings with the given changes, for as many categories, without statistics and region of interest."""
        counts = 0 if isinstance(self.config.num_calibration_images, int) else [0] * len(self.images_per_category)
        settings = {**asdict(self.score_config), "mask_edge": self.config.mask_edge, **score_settings}
        return Calibration(**settings, num_calibration_images=counts).to(self.device)

    # Forming a score

    def standardize(
        self, term_maps: Mapping[str, torch.Tensor], category: torch.Tensor | int | None = None
    ) -> dict[str, torch.Tensor]:
        """Raw term maps `(batch, height, width)` as they enter the ensemble (the hat of Eq. 11), by name.

        Args:
            category: whose statistics count where there are several: one for all images, or integers `(batch,)` or `(1,)`.
        """
        config, names = self.score_config, self.term_map_names
        first = 0 if category is None else category * len(names)  # of each image's statistics
        standardized = {}
        for name, term_map in term_maps.items():
            if config.per_image and term_of(name) in config.standardized_terms:
                standardized[name] = terms.standardize_per_image(term_map)
            else:
                mean, std = (values[first + names.index(name)].view(-1, 1, 1) for values in (self.term_mean, self.term_std))
                standardized[name] = terms.standardize(term_map, mean, std)
        return standardized

    def combine(self, term_maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Anomaly maps `(batch, height, width)`: weighted sum of standardised term maps (Eq. 11), normal outside the region."""
        return self.mask_outside(terms.weighted_sum(term_maps, self.score_config.shares))

    def mask_outside(self, anomaly_maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, height, width)` with a normal level outside the region of interest.

        That is 0, where standardisation puts normal pixels, or, where thresholds may be negative, a level below them all.
        """
        if self.roi is None:
            return anomaly_maps
        level = anomaly_maps.new_zeros(())
        if self.is_fitted:  # as normal_level has it, without a decision on data
            lowest = self.calibration_scores.min()
            level = torch.where(lowest > 0, level, lowest - 1)
        return torch.where(self._inside(anomaly_maps.shape[-2:]), anomaly_maps, level)

    def image_scores(self, anomaly_maps: torch.Tensor, top_k: int | None = None) -> torch.Tensor:
        """Scores `(batch,)` of maps `(batch, height, width)`: the mean of the highest pixels of the region of interest."""
        if self.roi is not None:
            anomaly_maps = torch.where(self._inside(anomaly_maps.shape[-2:]), anomaly_maps, -torch.inf)
        return terms.image_score(anomaly_maps, top_k or self.score_config.top_k)

    # The region of interest

    def set_roi(self, roi: torch.Tensor | None) -> None:
        """Sets the region of interest, bool `(height, width)`, before fitting: thresholds hold for no other.

        Raises:
            ValueError: if it has fewer pixels than the image score takes the mean of.
        """
        if roi is not None and roi.sum() < self.config.top_k:
            raise ValueError(f"the region of interest has {int(roi.sum())} pixels, but top_k is {self.config.top_k}")
        self.register_to_config(roi_size=None if roi is None else tuple(roi.shape))
        self.roi = None if roi is None else roi.to(self.term_mean.device)

    def inside(self, size: tuple[int, int]) -> torch.Tensor:
        """The region of interest, bool `(height, width)`, at a map's size.

        Raises:
            ValueError: if it has no pixel there.
        """
        inside = self._inside(size)
        if not inside.any():
            raise ValueError(f"the region of interest has no pixel in a map of {size[0]}x{size[1]}")
        return inside

    def _inside(self, size: tuple[int, int]) -> torch.Tensor:
        if self.roi is None:
            return torch.ones(tuple(size), dtype=torch.bool, device=self.term_mean.device)
        return resize_map(self.roi[None].float(), tuple(size))[0] >= 0.5

    # Fitting

    def set_statistics(self, statistics: TermStatistics, category: int = 0) -> None:
        """Sets what standardises a category's term maps, of all maps in the order of their names.

        Raises:
            ValueError: if a map was not finite.
        """
        names = self.score_config.term_map_names
        mean, std = statistics.mean_and_std
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise ValueError("term maps of the calibration images are not finite; use float32 or bfloat16 weights")
        for index, name in enumerate(names, start=category * len(names)):
            if term_of(name) in self.config.standardized_terms:
                self.term_mean[index] = mean[index % len(names)]
                self.term_std[index] = max(std[index % len(names)], 1e-12)

    def set_scores(self, scores: Sequence[np.ndarray], maxima: Sequence[np.ndarray]) -> None:
        """Sets what thresholds and p-values come from.

        Args:
            scores, maxima: for each category `(n,)`, image scores and highest pixels of its calibration images.

        Raises:
            ValueError: if one is not finite.
        """
        joined = [torch.from_numpy(np.concatenate([np.sort(v) for v in values])).float() for values in (scores, maxima)]
        if not all(values.isfinite().all() for values in joined):
            raise ValueError("scores of the calibration images are not finite; use float32 or bfloat16 weights")
        counts = [len(of_category) for of_category in scores]
        one = isinstance(self.config.num_calibration_images, int)
        self.register_to_config(num_calibration_images=counts[0] if one else counts)
        self.calibration_scores, self.calibration_maxima = (values.to(self.term_mean.device) for values in joined)

    # Judging

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
            warnings.warn(
                f"{n} calibration images{of_category} behind the thresholds guarantee a false-alarm rate of {rate:.3g} at "
                f"best: that is used in place of {conformal.DEFAULT_FALSE_ALARM_RATE}, which needs "
                f"{conformal.images_needed(conformal.DEFAULT_FALSE_ALARM_RATE)} (see pipe.calibrate)",
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
        anomaly_maps: Sequence[torch.Tensor],
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
        return Verdicts(
            p_values=self.p_values(image_scores, categories),
            is_defective=(image_scores > image_thresholds) | unknown,
            masks=[self.mask(m, threshold) for m, threshold in zip(anomaly_maps, pixel_thresholds.tolist(), strict=True)],
            false_alarm_rates=rates,
            image_thresholds=image_thresholds,
            pixel_thresholds=pixel_thresholds,
        )

    def mask(self, anomaly_map: torch.Tensor, threshold: float) -> torch.Tensor:
        """Defective pixels, bool, of a map `(height, width)` of any size, in the region of interest."""
        values = torch.where(self.inside(anomaly_map.shape).to(anomaly_map.device), anomaly_map, -torch.inf).cpu().numpy()
        mask = defect_mask(values, threshold, self.config.mask_edge, normal_level(threshold))
        return torch.from_numpy(mask).to(anomaly_map.device)

    @accepts_former_names(class_label="category")
    def image_threshold(self, false_alarm_rate: float, category: int = 0) -> float:
        """Scores above it are called defective; a good part exceeds it with at most the given probability."""
        return conformal.conformal_threshold(self.calibration_scores_of(category), false_alarm_rate)

    @accepts_former_names(class_label="category")
    def pixel_threshold(self, false_alarm_rate: float, category: int = 0) -> float:
        """Pixels above it are called defective; a good part has any such pixel with at most the given probability."""
        return conformal.conformal_threshold(self._of_category(self.calibration_maxima, category), false_alarm_rate)

    @accepts_former_names(class_label="category")
    def calibration_scores_of(self, category: int = 0) -> np.ndarray:
        """Ascending scores of the calibration images behind a category's thresholds."""
        return self._of_category(self.calibration_scores, category)

    def _of_category(self, scores: torch.Tensor, category: int) -> np.ndarray:
        return scores.split(self.images_per_category)[category].cpu().numpy()


def check_finite(image_scores: np.ndarray) -> None:
    """Raises ValueError naming the first of the scores `(N,)` that is not finite: it would pass for normal."""
    broken = np.flatnonzero(~np.isfinite(image_scores))
    if len(broken):
        raise ValueError(f"the score of image {broken[0]} is not finite; use float32 or bfloat16 weights")


def split_for_statistics(images: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices of calibration images into those for the statistics, one in ten and at least one, and for thresholds.

    With statistics of its own image a score is lower than a new image's: the terms in which the image stands out have a larger
    standard deviation and so weigh less. Few images do, because each has as many samples as pixels.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed), device="cpu").numpy()
    count = len(images) - conformal.images_behind_thresholds(len(images))
    return np.sort(images[order[:count]]), np.sort(images[order[count:]])
