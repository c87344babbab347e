"""How scores are formed and judged: the score's settings, its statistics on good images, and thresholds from them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..deprecation import accepts_former_names, former_name, with_present_names
from ..imaging.array_maps import region_at
from ..imaging.image_statistics import POSITION_SIDE, STATISTICS
from ..imaging.maps import resize_map
from ..models.float32 import Float32ModelMixin
from . import terms
from .config import DEFAULT_WEIGHTS, TERMS, ScoreConfig, pixels_of, term_of
from .judging import Judging
from .presets import score_settings
from .reference_parts import ReferenceParts
from .statistics import TermStatistics
from .tails import KNOT_SHARES, Tail, decades

NO_VERDICT: dict[str, float] = {}
# Settings and tensors as models were saved with diffad 0.1.
FORMER_NAMES = {
    "num_normals": "num_calibration_images",
    "partial_mean": "term_mean",
    "partial_std": "term_std",
    "normal_scores": "calibration_scores",
    "normal_maxima": "calibration_maxima",
}


class Calibration(Judging, Float32ModelMixin, ConfigMixin):
    """Settings of the score with the statistics and scores of calibration images under them.

    Some calibration images, drawn by `seed`, give the statistics under which scores are formed; the scores of the other n give
    thresholds and p-values by the rules of [`diffad.scoring.conformal`]. Hence these n and a new good part's score are
    exchangeable if the images are, P(false alarm) <= rate and P(p <= rate) <= rate for every rate, for verdicts and masks.

    `Calibration()` has the score of models that diffad 0.1 trained. The present default is that of
    `pipe.calibrate(images, score="default")`.

    Args:
        timesteps, ..., seed: as of [`ScoreConfig`].
        roi_size: `(height, width)` of the region of interest; None is the whole image.
        roi_share: share of the image that is inside.
        num_calibration_images: n, the images behind the thresholds; 0 before fitting. For a model of several categories one
            number for each, and every category has its own statistics and thresholds under the one score.
        num_features: D of these images' pooled features, by which the monitor knows them; 0 where they are not known.
        by_groups: whether they are groups of images, each with the highest score of its images; then the scores of one image
            drawn of each group are kept, too, for the monitor.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = [
        *("term_mean", "term_std", "tail_knots", "tail_scale", "tail_shape", "verdict_mean", "verdict_std", "single_scores"),
        *("calibration_scores", "calibration_maxima", "calibration_features", "calibration_statistics", "mean_squares"),
    ]

    @accepts_former_names(num_normals=FORMER_NAMES["num_normals"])
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
        fusion: str = "sum",
        verdict: dict[str, float] = NO_VERDICT,
        verdict_area: float = 0.01,
        scales: tuple[str, ...] = (),
        statistics_share: float = 0.1,
        mask_edge: float | None = None,
        short_side: int | None = None,
        tile_overlap: float = 0.25,
        seed: int = 0,
        roi_size: tuple[int, int] | None = None,
        roi_share: float = 1.0,
        num_calibration_images: int | tuple[int, ...] = 0,
        num_features: int = 0,
        by_groups: bool = False,
    ):
        super().__init__()
        # The settings of the score; made first, because it checks them
        self.score_config = ScoreConfig(**{field.name: self.config[field.name] for field in fields(ScoreConfig)})
        maps = len(self.term_map_names)
        counts = self.images_per_category
        self.register_buffer("roi", torch.zeros(roi_size, dtype=torch.bool) if roi_size else None)
        # One category after the other, so that one category has the shapes of none; scores ascend within each.
        self.register_buffer("term_mean", torch.zeros(len(counts) * maps))
        self.register_buffer("term_std", torch.ones(len(counts) * maps))
        if self.config.fusion == "tails":
            fused = len(counts) * len(self.config.weights)
            self.register_buffer("tail_knots", torch.zeros(fused, len(KNOT_SHARES)))
            self.register_buffer("tail_scale", torch.ones(fused))
            self.register_buffer("tail_shape", torch.ones(fused))
        if self.config.verdict:
            self.register_buffer("verdict_mean", torch.zeros(len(counts) * len(self.config.verdict)))
            self.register_buffer("verdict_std", torch.ones(len(counts) * len(self.config.verdict)))
        self.register_buffer("calibration_scores", torch.zeros(sum(counts)))
        self.register_buffer("calibration_maxima", torch.zeros(sum(counts)))
        if by_groups:
            self.register_buffer("single_scores", torch.zeros(sum(counts)))
        if num_features:  # in the order of the scores, of single images where there are
            self.register_buffer("calibration_features", torch.zeros(sum(counts), num_features))
            self.register_buffer("calibration_statistics", torch.zeros(sum(counts), len(STATISTICS)))
            self.register_buffer("mean_squares", torch.zeros(len(counts), POSITION_SIDE, POSITION_SIDE))

    partial_names = former_name("partial_names", "term_map_names")
    normals_per_class = former_name("normals_per_class", "images_per_category")
    normal_scores = former_name("normal_scores", "calibration_scores")
    normal_maxima = former_name("normal_maxima", "calibration_maxima")
    partial_mean = former_name("partial_mean", "term_mean")
    partial_std = former_name("partial_std", "term_std")
    normal_scores_of = former_name("normal_scores_of", "calibration_scores_of")

    @classmethod
    def extract_init_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Arguments of the constructor from a configuration, also by names of diffad 0.1."""
        if "_class_name" in config_dict:  # a saved model's: without a warning, as its tensors
            config_dict = cls.present_names(config_dict)
        else:
            config_dict = with_present_names(config_dict, FORMER_NAMES, stacklevel=4)
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def present_names(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Settings or tensors as they were saved, by their present names."""
        return {FORMER_NAMES.get(name, name): value for name, value in saved.items()}

    def _fix_state_dict_keys_on_load(self, state_dict: dict[str, torch.Tensor]) -> None:
        renamed = self.present_names(state_dict)
        state_dict.clear()
        state_dict.update(renamed)

    def check_state(self) -> None:
        super().check_state()
        for name in ("term_std", "tail_scale", "tail_shape", "verdict_std"):
            if hasattr(self, name) and not (getattr(self, name) > 0).all():
                raise ValueError(f"{name} is not positive")
        for name in ("calibration_scores", "calibration_maxima", *["single_scores"] * self.config.by_groups):
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

    @accepts_former_names(class_label="category")
    def calibration_scores_of(self, category: int = 0) -> np.ndarray:
        """Image scores `(n,)` of a category's calibration images behind the thresholds, ascending."""
        return self._of_category(self.calibration_scores, category)

    def calibration_maxima_of(self, category: int = 0) -> np.ndarray:
        """Highest pixels `(n,)` of the anomaly maps of these images, ascending."""
        return self._of_category(self.calibration_maxima, category)

    def single_scores_of(self, category: int = 0) -> np.ndarray | None:
        """Image scores `(n,)`, ascending, of one image drawn of each of a category's groups; None where there are none."""
        return self._of_category(self.single_scores, category) if self.config.by_groups else None

    def reference_parts(self, category: int = 0) -> ReferenceParts | None:
        """What a category's calibration images look like, for the monitor; None where it was not kept."""
        if not self.config.num_features:
            return None
        features, statistics = (
            self._of_category(values, category) for values in (self.calibration_features, self.calibration_statistics)
        )
        return ReferenceParts(features, statistics, self.mean_squares[category].cpu().numpy())

    def _of_category(self, values: torch.Tensor, category: int) -> np.ndarray:
        return values.split(self.images_per_category)[category].cpu().numpy()

    @property
    def is_fitted(self) -> bool:
        """Whether every category has calibration images, without which there are no thresholds."""
        return min(self.images_per_category) > 0

    def unfitted(self, score: str | None = None, **settings: Any) -> "Calibration":
        """The same settings with the given changes, for as many categories, without statistics and region of interest.

        Args:
            score: name of the score whose settings are changed in place of the present ones; see [`diffad.scoring.presets`].

        Raises:
            ValueError: if there is no such score, or a setting does not exist or is wrong.
        """
        known = [field.name for field in fields(ScoreConfig)]
        if unknown := sorted(set(settings).difference(known)):
            raise ValueError(f"a score has no setting {', '.join(unknown)}; it has score, {', '.join(known)}")
        counts = 0 if isinstance(self.config.num_calibration_images, int) else [0] * len(self.images_per_category)
        present = {name: self.config[name] for name in known}  # as they would be saved
        if score is not None:
            size = {name: settings.get(name, present[name]) for name in ("short_side", "tile_overlap", "seed")}
            present = {**asdict(ScoreConfig()), **size, **score_settings(score, size["short_side"])}
        settings = {**present, **settings}
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

    def anomaly_maps(self, term_maps: Mapping[str, torch.Tensor], category: torch.Tensor | int | None = None) -> torch.Tensor:
        """Anomaly maps `(batch, height, width)` of raw term maps, at least of the weighted terms, as `fusion` has it."""
        if self.config.fusion == "sum":
            return self.combine(self.standardize({name: term_maps[name] for name in self.score_config.shares}, category))
        by_term, names = terms.mean_over_timesteps(term_maps), self.score_config.map_terms
        in_decades = {}
        for index, term in enumerate(names):
            of_term = (self.tail_knots, self.tail_scale, self.tail_shape)
            tail = Tail(*(self._statistic(values, index, len(names), category) for values in of_term))
            in_decades[term] = decades(by_term[term], tail)
        return self.mask_outside(terms.weighted_sum(in_decades, self.config.weights))

    def scores(
        self, term_maps: Mapping[str, torch.Tensor], anomaly_maps: torch.Tensor, category: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Image scores `(batch,)` of raw term maps and their anomaly maps: of the verdict's terms, or without these of the map.

        The verdict is the weighted mean over its terms of the mean of each one's highest pixels, standardised by that of good
        images.
        """
        if not self.config.verdict:
            return self.image_scores(anomaly_maps)
        by_term, names = terms.mean_over_timesteps(term_maps), self.score_config.verdict_terms
        height, width = anomaly_maps.shape[-2:]
        pixels = pixels_of(self.config.verdict_area, round(self.config.roi_share * height * width))
        standardized = {}
        for index, term in enumerate(names):
            of_term = (self.verdict_mean, self.verdict_std)
            mean, std = (self._statistic(values, index, len(names), category) for values in of_term)
            standardized[term] = terms.standardize(self.image_scores(by_term[term], pixels), mean, std)
        return terms.weighted_mean(standardized, self.config.verdict)

    @staticmethod
    def _statistic(values: torch.Tensor, index: int, count: int, category: torch.Tensor | int | None) -> torch.Tensor:
        """The statistic at `index` of the `count` of each category: `(1, ...)`, or `(batch, ...)` for categories `(batch,)`."""
        first = 0 if category is None else category * count
        return values[first + index].view(-1, *values.shape[1:])

    def mask_outside(self, anomaly_maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, height, width)` with a normal level outside the region of interest.

        That is 0, where standardisation puts normal pixels, or, where thresholds may be negative, a level below them all.
        """
        if self.roi is None:
            return anomaly_maps
        level = anomaly_maps.new_zeros(())
        if self.is_fitted:  # as normal_level has it, without a decision on data
            lowest = (self.calibration_maxima if self.config.verdict else self.calibration_scores).min()
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
        size, share = (None, 1.0) if roi is None else (tuple(roi.shape), roi.float().mean().item())
        self.register_to_config(roi_size=size, roi_share=share)
        self.roi = None if roi is None else roi.to(self.term_mean.device)

    def inside(self, size: tuple[int, int]) -> torch.Tensor:
        """The region of interest, bool `(height, width)`, at a map's size.

        Raises:
            ValueError: if it has no pixel there.
        """
        return torch.from_numpy(region_at(self.region, tuple(size))).to(self.term_mean.device)

    @property
    def region(self) -> np.ndarray | None:
        """The region of interest as it was given, bool `(height, width)`; None is the whole image."""
        return None if self.roi is None else self.roi.cpu().numpy()

    def _inside(self, size: tuple[int, int]) -> torch.Tensor:
        if self.roi is None:
            return torch.ones(tuple(size), dtype=torch.bool, device=self.term_mean.device)
        return resize_map(self.roi[None].float(), tuple(size))[0] >= 0.5

    # Fitting

    def set_statistics(self, statistics: TermStatistics, category: int = 0) -> None:
        """Sets what scores of a category's images are formed with.

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
        if self.config.fusion == "tails":
            tail = statistics.tail
            self._set_of_category(category, tail_knots=tail.knots, tail_scale=tail.scale, tail_shape=tail.shape)
        if self.config.verdict:
            mean, std = statistics.verdict_mean_and_std
            self._set_of_category(category, verdict_mean=mean, verdict_std=np.maximum(std, 1e-12))

    def _set_of_category(self, category: int, **statistics: np.ndarray) -> None:
        for name, values in statistics.items():
            getattr(self, name)[category * len(values) : (category + 1) * len(values)] = torch.from_numpy(values).float()

    def set_scores(
        self,
        scores: Sequence[np.ndarray],
        maxima: Sequence[np.ndarray],
        references: Sequence[ReferenceParts] | None = None,
        single_scores: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Sets what thresholds and p-values come from.

        Args:
            scores, maxima: for each category `(n,)`, image scores and highest pixels of its calibration images, or groups.
            references: for each category what these images look like, in the order of `single_scores`, or without these of
                `scores`; None keeps nothing of it.
            single_scores: for each category `(n,)`, image scores of one image drawn of each group; None where each is one.

        Raises:
            ValueError: if one is not finite.
        """
        given = (scores, maxima, single_scores or [])
        joined = [torch.from_numpy(np.concatenate([np.sort(v) for v in values] or [[]])).float() for values in given]
        if not all(values.isfinite().all() for values in joined):
            raise ValueError("scores of the calibration images are not finite; use float32 or bfloat16 weights")
        counts = [len(of_category) for of_category in scores]
        one = isinstance(self.config.num_calibration_images, int)
        self.register_to_config(num_calibration_images=counts[0] if one else counts)
        self.register_to_config(by_groups=single_scores is not None)
        self._buffers.pop("single_scores", None)
        joined = [values.to(self.term_mean.device) for values in joined]
        self.calibration_scores, self.calibration_maxima = joined[:2]
        if single_scores is not None:
            self.register_buffer("single_scores", joined[2])
        of_images = scores if single_scores is None else single_scores
        self._set_references([] if references is None else [r.sorted_by(s) for r, s in zip(references, of_images, strict=True)])

    def _set_references(self, references: Sequence[ReferenceParts]) -> None:
        self.register_to_config(num_features=references[0].features.shape[1] if references else 0)
        kept = {"calibration_features": "features", "calibration_statistics": "statistics", "mean_squares": "mean_square"}
        for buffer, name in kept.items():
            self._buffers.pop(buffer, None)
            if references:
                join = np.stack if name == "mean_square" else np.concatenate
                values = torch.from_numpy(join([getattr(of_category, name) for of_category in references]))
                self.register_buffer(buffer, values.to(self.term_mean.device))
