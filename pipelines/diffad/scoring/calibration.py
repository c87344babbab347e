"""How scores are formed and judged: the recipe, its statistics on held-out normal images, and thresholds from them."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..imaging.maps import normal_level, resize_map
from ..models.float32 import Float32ModelMixin
from . import terms

TIMESTEP_TERMS = ("kl", "rgb", "feature")
TERMS = (*TIMESTEP_TERMS, "residual", "mahalanobis")
DEFAULT_TIMESTEPS = (20, 201, 401)
# Chosen on synthetic defects on held-out good images (training/benchmarks/choose_weights.py), the same for every category.
DEFAULT_WEIGHTS = {"rgb": 1 / 6, "residual": 2 / 3, "mahalanobis": 1 / 6}
DEFAULT_FALSE_ALARM_RATE = 0.05
IMAGES_PER_STATISTICS_IMAGE = 10
# Settings and tensors as models were saved with diffad 0.1.
FORMER_NAMES = {
    "num_normals": "num_calibration_images",
    "partial_mean": "term_mean",
    "partial_std": "term_std",
    "normal_scores": "calibration_scores",
    "normal_maxima": "calibration_maxima",
}


class Calibration(Float32ModelMixin, ConfigMixin):
    """Scoring recipe with the statistics of held-out normal images under it.

    One held-out image in ten, drawn by `seed` and at least one, gives the statistics of standardisation; the scores of the
    other n give thresholds and p-values. Hence these n scores and that of a new normal part are exchangeable if the images
    are: same camera, parts and light, no order in time that matters. Then P(false alarm) <= rate and P(p <= rate) <= rate for
    every rate, whatever the distribution of scores (split conformal prediction, Vovk et al. 2005). This is marginal: the mean
    over draws of the n images. With one set of them the long-run rate scatters around it, as Beta(n + 1 - k, k) for continuous
    scores and a threshold at the k-th, which for few images is wide. Image verdicts and masks have the guarantee each.

    Args:
        timesteps: noise levels of the multi-scale score in original units; the default is the paper's {5, 50, 100} of a
            chain respaced to 250 steps.
        num_inference_steps: length of the respaced chain whose reverse steps the KL term compares; None is the full one.
        weights: share of each score term (`kl`, `rgb`, `feature`, `residual`, `mahalanobis`) in the anomaly map.
        standardized_terms: terms brought to mean 0 and standard deviation 1 by the statistics; the paper does so for
            `kl` only.
        per_image: standardise with each map's own statistics instead, like the paper's released code.
        smoothing_sigma: Gaussian smoothing of every term map, in pixels of the model's resolution.
        top_k: the image score is the mean of this many highest pixels.
        short_side: pixels of the shorter side of images that keep their aspect and are scored in tiles of the model's
            resolution; None resizes every image to the model's resolution, whatever its aspect.
        tile_overlap: share of a tile that neighbours have in common, at least.
        seed: of the noise.
        roi_size: `(height, width)` of the region of interest; None is the whole image.
        num_calibration_images: n, the held-out normal images behind the thresholds; 0 before fitting. For a model of several categories
            one number for each, and every category has its own statistics and thresholds under the one recipe.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["term_mean", "term_std", "calibration_scores", "calibration_maxima"]

    @register_to_config
    def __init__(
        self,
        timesteps: tuple[int, ...] = DEFAULT_TIMESTEPS,
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
    ):
        super().__init__()
        unknown = (set(weights) | set(standardized_terms)) - set(TERMS)
        if unknown:
            raise ValueError(f"unknown score terms {sorted(unknown)}; there are {', '.join(TERMS)}")
        if not timesteps or not weights:
            raise ValueError("a recipe needs at least one timestep and one weighted term")
        if len(set(timesteps)) < len(timesteps):
            raise ValueError(f"timesteps {timesteps} hold one twice")
        if top_k < 1 or smoothing_sigma < 0:
            raise ValueError(f"top_k must be at least 1 and smoothing_sigma at least 0, got {top_k} and {smoothing_sigma}")
        if not 0 <= tile_overlap < 1:
            raise ValueError(f"tile_overlap must lie in [0, 1), got {tile_overlap}")
        self.register_buffer("roi", torch.zeros(roi_size, dtype=torch.bool) if roi_size else None)
        # One class after the other, so that one class has the shapes of no classes; scores ascend within each.
        counts = self.images_per_category
        self.register_buffer("term_mean", torch.zeros(len(counts) * len(self.term_map_names)))
        self.register_buffer("term_std", torch.ones(len(counts) * len(self.term_map_names)))
        self.register_buffer("calibration_scores", torch.zeros(sum(counts)))
        self.register_buffer("calibration_maxima", torch.zeros(sum(counts)))

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs):
        return super().extract_init_dict(_renamed(config_dict), **kwargs)

    def _fix_state_dict_keys_on_load(self, state_dict: dict) -> None:
        for name, tensor in _renamed(state_dict).items():
            state_dict[name] = tensor
        for name in FORMER_NAMES.keys() & state_dict.keys():
            del state_dict[name]

    @property
    def term_map_names(self) -> list[str]:
        """`kl@20`, `rgb@20`, ..., `residual` and `mahalanobis`, in the order of the statistics."""
        return [f"{term}@{t}" for t in self.config.timesteps for term in TIMESTEP_TERMS] + [
            "residual",
            "mahalanobis",
        ]

    @property
    def images_per_category(self) -> list[int]:
        """Held-out normal images of each category; one number where there is one category."""
        counts = self.config.num_calibration_images
        return [counts] if isinstance(counts, int) else list(counts)

    @property
    def is_fitted(self) -> bool:
        return min(self.images_per_category) > 0

    def unfitted(self, **recipe) -> "Calibration":
        """The same recipe with the given changes, for as many classes, without statistics and region of interest."""
        settings = {name: value for name, value in self.config.items() if not name.startswith("_")}
        counts = 0 if isinstance(self.config.num_calibration_images, int) else [0] * len(self.config.num_calibration_images)
        return Calibration(**{**settings, **recipe, "roi_size": None, "num_calibration_images": counts})

    def standardize(self, name: str, partial: torch.Tensor, categories: torch.Tensor | None = None) -> torch.Tensor:
        """A raw term map `(batch, height, width)` as it enters the ensemble (the hat of Eq. 11).

        `categories` `(batch,)` say whose statistics count, where there are several categories.
        """
        if self.config.per_image and name.partition("@")[0] in self.config.standardized_terms:
            return terms.standardize_per_image(partial)
        index = self.term_map_names.index(name)
        if categories is not None:
            index = categories * len(self.term_map_names) + index  # (B,)
        mean, std = (statistic[index].view(-1, 1, 1) for statistic in (self.term_mean, self.term_std))
        return terms.standardize(partial, mean, std)

    def combine(self, partials: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Eq. 11: weighted sum over terms of the mean over timesteps of standardised term maps, `(batch, height, width)`.

        Normal outside the region of interest, as by [`~Calibration.mask_outside`].
        """
        shares = {name: self.config.weights.get(name.partition("@")[0], 0.0) for name in self.term_map_names}
        shares = {
            name: weight / len(self.config.timesteps) if "@" in name else weight for name, weight in shares.items() if weight
        }
        return self.mask_outside(terms.weighted_sum(partials, shares))

    def mask_outside(self, anomaly_maps: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, height, width)` with a normal level outside the region of interest.

        That is 0, where standardisation puts normal pixels, or, where thresholds may be negative, a level below them all.
        """
        if self.roi is None:
            return anomaly_maps
        level = normal_level(self.calibration_scores.min().item()) if self.is_fitted else 0.0
        return anomaly_maps.where(self.inside(anomaly_maps.shape[-2:]), level)

    def image_scores(self, anomaly_maps: torch.Tensor, top_k: int | None = None) -> torch.Tensor:
        """Scores `(batch,)` of maps `(batch, height, width)`: the mean of the highest pixels of the region of interest."""
        if self.roi is not None:
            anomaly_maps = anomaly_maps[:, self.inside(anomaly_maps.shape[-2:])]
        return terms.image_score(anomaly_maps, top_k or self.config.top_k)

    def set_roi(self, roi: torch.Tensor | None) -> None:
        """Sets the region of interest, bool `(height, width)`, before fitting: thresholds hold for no other."""
        self.register_to_config(roi_size=None if roi is None else tuple(roi.shape))
        self.roi = None if roi is None else roi.to(self.term_mean.device)

    def inside(self, size: tuple[int, int]) -> torch.Tensor:
        """The region of interest `(height, width)` at a map's size.

        Raises:
            ValueError: if it has no pixel there.
        """
        if self.roi is None:
            return torch.ones(tuple(size), dtype=torch.bool)
        inside = resize_map(self.roi[None].float(), tuple(size))[0] >= 0.5
        if not inside.any():
            raise ValueError(f"the region of interest has no pixel in a map of {size[0]}x{size[1]}")
        return inside

    def fit(self, partials: Sequence[np.ndarray], categories: Sequence[int] | None = None) -> None:
        """Statistics of every term from some normal images, then the scores that the others get under them; each class apart.

        Args:
            partials: raw term maps `(len(term_map_names), height, width)` of each held-out normal image; may be
                memory-mapped, one image is read at a time.
            categories: category of each image, where there are several.

        Raises:
            ValueError: if there are fewer than two images (one where nothing is standardised by statistics) of a class, or a
                map is not finite.
        """
        labels = np.zeros(len(partials), dtype=int) if categories is None else np.asarray(categories)
        needs_statistics = bool(self.config.standardized_terms) and not self.config.per_image
        classes = len(self.images_per_category)
        scores, maxima = [], []
        for label in range(classes):
            chosen = np.flatnonzero(labels == label)
            if len(chosen) < 1 + needs_statistics:
                of_class = f" of class {label}" if classes > 1 else ""
                raise ValueError(
                    f"calibration needs at least {1 + needs_statistics} normal images, got {len(chosen)}{of_class}"
                )
            if needs_statistics:
                for_statistics, chosen = split_for_statistics(chosen, self.config.seed)
                self._fit_statistics(partials, for_statistics, label)
            class_scores, class_maxima = self._score_normals(partials, chosen, label)
            scores.append(np.sort(class_scores))
            maxima.append(np.sort(class_maxima))
        if not (np.isfinite(np.concatenate(scores)).all() and self.term_std.isfinite().all()):
            raise ValueError("term maps of the normal images are not finite; use float32 or bfloat16 weights")
        counts = [len(of_class) for of_class in scores]
        self.register_to_config(
            num_calibration_images=counts[0] if isinstance(self.config.num_calibration_images, int) else counts
        )
        self.calibration_scores = torch.as_tensor(np.concatenate(scores), dtype=torch.float32, device=self.term_mean.device)
        self.calibration_maxima = torch.as_tensor(np.concatenate(maxima), dtype=torch.float32, device=self.term_mean.device)

    def _fit_statistics(self, partials: Sequence[np.ndarray], chosen: np.ndarray, label: int) -> None:
        count, total, total_square = 0, 0.0, 0.0
        for image in (partials[i] for i in chosen):
            pixels = image[:, self.inside(image.shape[1:]).cpu().numpy()]  # (partials, pixels)
            count += pixels.shape[1]
            total += pixels.sum(axis=1, dtype=np.float64)
            total_square += np.square(pixels, dtype=np.float64).sum(axis=1)
        mean, mean_square = total / count, total_square / count
        std = np.sqrt(np.maximum(mean_square - mean**2, 0))
        first = label * len(self.term_map_names)
        for index, name in enumerate(self.term_map_names):
            if name.partition("@")[0] in self.config.standardized_terms:
                self.term_mean[first + index] = mean[index]
                self.term_std[first + index] = max(std[index], 1e-12)

    def _score_normals(self, partials: Sequence[np.ndarray], chosen: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Image scores and highest pixels of the chosen images under the statistics of their class, `(n,)` each."""
        scores, maxima = [], []
        for image in (partials[i] for i in chosen):
            anomaly_map = self.combine_stored(image, label)
            scores.append(self.image_scores(anomaly_map).item())
            maxima.append(self.image_scores(anomaly_map, top_k=1).item())
        return np.array(scores), np.array(maxima)

    def combine_stored(self, partials: np.ndarray, category: int = 0) -> torch.Tensor:
        """The anomaly map `(1, height, width)` of one image's raw term maps `(len(term_map_names), height, width)`."""
        labels = torch.tensor([category], device=self.term_mean.device)
        raw = zip(self.term_map_names, torch.from_numpy(np.array(partials)), strict=True)
        return self.combine({name: self.standardize(name, partial[None], labels) for name, partial in raw})

    def p_values(self, scores: np.ndarray, categories: Sequence[int] | None = None) -> np.ndarray:
        """Conformal p-values (1 + #{normal >= score}) / (n + 1): P(p <= a) <= a for a normal part (of that class), any a."""
        labels = np.zeros(len(scores), dtype=int) if categories is None else np.asarray(categories)
        p_values = np.empty(len(scores))
        for label in np.unique(labels):
            normal = self.calibration_scores_of(label)
            at_least = len(normal) - np.searchsorted(normal, scores[labels == label], side="left")
            p_values[labels == label] = (1 + at_least) / (len(normal) + 1)
        return p_values

    def supported_rate(self, false_alarm_rate: float | None = None, category: int = 0) -> float:
        """The false-alarm rate that a category's thresholds are set for: a requested one, or for None 5 %.

        With too few normal images for 5 %, None is the smallest rate that they support, 1 / (n + 1), and a warning says so. Of
        several categories each has its own n, so that a small one coarsens no other.

        Raises:
            ValueError: if there are no normal images, or too few for the requested rate, or it does not lie in (0, 1).
        """
        n = self.images_per_category[category]
        if false_alarm_rate is not None:
            check_supported(n, false_alarm_rate)
            return false_alarm_rate
        false_alarm_rate = max(DEFAULT_FALSE_ALARM_RATE, 1 / (n + 1))
        check_supported(n, false_alarm_rate)
        if false_alarm_rate > DEFAULT_FALSE_ALARM_RATE:
            of_class = f" of class {category}" if len(self.images_per_category) > 1 else ""
            warnings.warn(
                f"{n} normal images{of_class} behind the thresholds guarantee a false-alarm rate of {false_alarm_rate:.3g} "
                f"at best: that is used in place of {DEFAULT_FALSE_ALARM_RATE}, which needs "
                f"{images_needed(DEFAULT_FALSE_ALARM_RATE)} (see pipe.calibrate)",
                stacklevel=2,
            )
        return false_alarm_rate

    def supported_rates(
        self, false_alarm_rate: float | None = None, categories: Sequence[int] | None = None
    ) -> dict[int, float]:
        """[`~Calibration.supported_rate`] of each of the categories; None is all, because any may be recognised."""
        labels = range(len(self.images_per_category)) if categories is None else dict.fromkeys(categories)
        return {label: self.supported_rate(false_alarm_rate, label) for label in labels}

    def image_threshold(self, false_alarm_rate: float, category: int = 0) -> float:
        """Scores above it are called defective; a normal part exceeds it with at most the given probability."""
        return conformal_threshold(self.calibration_scores_of(category), false_alarm_rate)

    def pixel_threshold(self, false_alarm_rate: float, category: int = 0) -> float:
        """Pixels above it are called defective; a normal part has any such pixel with at most the given probability."""
        return conformal_threshold(self._of_class(self.calibration_maxima, category), false_alarm_rate)

    def calibration_scores_of(self, category: int = 0) -> np.ndarray:
        """Ascending scores of the normal images behind a category's thresholds."""
        return self._of_class(self.calibration_scores, category)

    def _of_class(self, scores: torch.Tensor, category: int) -> np.ndarray:
        return scores.split(self.images_per_category)[category].cpu().numpy()


def split_for_statistics(images: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices of normal images into those for the statistics, one in ten and at least one, and those for thresholds.

    With statistics of its own image a normal score is lower than a new image's: the terms in which the image stands out have
    a larger standard deviation and so weigh less. Few images do, because each has as many samples as pixels.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed), device="cpu").numpy()
    count = len(images) - images_behind_thresholds(len(images))
    return np.sort(images[order[:count]]), np.sort(images[order[count:]])


def images_behind_thresholds(held_out: int) -> int:
    """How many of the held-out normal images are left for thresholds once the statistics have theirs."""
    return held_out - max(1, held_out // IMAGES_PER_STATISTICS_IMAGE)


def images_needed(false_alarm_rate: float) -> int:
    """How many held-out normal images to calibrate on for a false-alarm rate, those for the statistics included."""
    for_thresholds = scores_needed(false_alarm_rate)
    total = for_thresholds + 1
    while images_behind_thresholds(total) < for_thresholds:
        total += 1
    return total


def check_supported(n: int, false_alarm_rate: float) -> None:
    """Refuses a false-alarm rate that n normal scores can't guarantee, which is one below 1 / (n + 1).

    Raises:
        ValueError: naming how many images are needed and the smallest rate that is supported.
    """
    if n == 0:
        raise ValueError("no normal scores: calibrate the pipeline on held-out normal images first")
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must lie between 0 and 1, got {false_alarm_rate}")
    if scores_needed(false_alarm_rate) > n:
        smallest = math.ceil(1e4 / (n + 1)) / 1e4  # rounded up, so that it is supported as written
        raise ValueError(
            f"a false_alarm_rate of {false_alarm_rate:g} needs {scores_needed(false_alarm_rate)} normal images behind the "
            f"thresholds, there are {n}: calibrate on {images_needed(false_alarm_rate)} held-out normal images (some serve "
            f"the statistics), or ask for the smallest rate that is supported, {smallest:g}"
        )


def conformal_threshold(calibration_scores: np.ndarray, false_alarm_rate: float) -> float:
    """Smallest threshold that a new exchangeable normal score exceeds with probability at most `false_alarm_rate`.

    With n sorted scores it is the k-th of `threshold_rank`. The probability is over draws of all n + 1 scores.

    Raises:
        ValueError: if there are no scores or too few for the rate, or it is not in (0, 1).
    """
    n = len(calibration_scores)
    check_supported(n, false_alarm_rate)
    return float(np.sort(calibration_scores)[threshold_rank(n, false_alarm_rate) - 1])


def threshold_rank(n: int, false_alarm_rate: float) -> int:
    """k = ceil((n + 1) (1 - rate)): a new score exceeds the k-th lowest of n with probability (n + 1 - k) / (n + 1) at most."""
    return math.ceil((n + 1) * (1 - false_alarm_rate) - 1e-9)


def scores_needed(false_alarm_rate: float) -> int:
    """How many normal scores behind a threshold guarantee a false-alarm rate: 1 / (n + 1) must not exceed it."""
    return math.ceil(1 / false_alarm_rate - 1e-9) - 1


def _renamed(saved: Mapping) -> dict:
    """Saved settings or tensors under their present names."""
    return {FORMER_NAMES.get(name, name): value for name, value in saved.items()}
