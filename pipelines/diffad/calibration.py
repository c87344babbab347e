"""How scores are formed and judged: the recipe, its statistics on held-out normal images, and thresholds from them."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from . import scoring
from .fitted_state import Float32ModelMixin

TIMESTEP_TERMS = ("kl", "rgb", "feature")
TERMS = (*TIMESTEP_TERMS, "residual", "mahalanobis")
DEFAULT_TIMESTEPS = (20, 201, 401)
# One vote each for the two halves of Eq. 11 at the paper's alpha = 0.5, and one for the distance to normal features.
DEFAULT_WEIGHTS = {"kl": 0.25, "feature": 0.25, "mahalanobis": 0.5}


class Calibration(Float32ModelMixin, ConfigMixin):
    """Scoring recipe with the statistics of held-out normal images under it.

    Args:
        timesteps: noise levels of the multi-scale score in original units; the default is the paper's {5, 50, 100} of a
            chain respaced to 250 steps.
        num_inference_steps: length of the respaced chain whose reverse steps the KL term compares; None is the full one.
        weights: share of each score term (`kl`, `rgb`, `feature`, `residual`, `mahalanobis`) in the anomaly map.
        standardized_terms: terms brought to mean 0 and standard deviation 1 by the statistics; the paper does so for
            `kl` only.
        per_image: standardise with each map's own statistics instead, like the paper's released code.
        smoothing_sigma: Gaussian smoothing of every partial map, in pixels of the model's resolution.
        top_k: the image score is the mean of this many highest pixels.
        seed: of the noise.
        num_normals: held-out normal images behind the statistics; 0 before fitting. For a model of several categories one
            number for each, and every category has its own statistics under the one recipe.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["partial_mean", "partial_std", "normal_scores", "normal_maxima"]

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
        seed: int = 0,
        num_normals: int | tuple[int, ...] = 0,
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
        # One class after the other, so that one class has the shapes of no classes; scores ascend within each.
        counts = self.normals_per_class
        self.register_buffer("partial_mean", torch.zeros(len(counts) * len(self.partial_names)))
        self.register_buffer("partial_std", torch.ones(len(counts) * len(self.partial_names)))
        self.register_buffer("normal_scores", torch.zeros(sum(counts)))
        self.register_buffer("normal_maxima", torch.zeros(sum(counts)))

    @property
    def partial_names(self) -> list[str]:
        """`kl@20`, `rgb@20`, ..., `residual` and `mahalanobis`, in the order of the statistics."""
        return [f"{term}@{t}" for t in self.config.timesteps for term in TIMESTEP_TERMS] + [
            "residual",
            "mahalanobis",
        ]

    @property
    def normals_per_class(self) -> list[int]:
        """Held-out normal images of each category; one number where there is one category."""
        counts = self.config.num_normals
        return [counts] if isinstance(counts, int) else list(counts)

    @property
    def is_fitted(self) -> bool:
        return min(self.normals_per_class) > 0

    def unfitted(self, **recipe) -> "Calibration":
        """The same recipe with the given changes, for as many classes, without statistics."""
        settings = {name: value for name, value in self.config.items() if not name.startswith("_")}
        counts = 0 if isinstance(self.config.num_normals, int) else [0] * len(self.config.num_normals)
        return Calibration(**{**settings, **recipe, "num_normals": counts})

    def standardize(self, name: str, partial: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """A raw partial map `(batch, height, width)` as it enters the ensemble (the hat of Eq. 11).

        `class_labels` `(batch,)` say whose statistics count, where there are several categories.
        """
        if self.config.per_image and name.partition("@")[0] in self.config.standardized_terms:
            return scoring.standardize_per_image(partial)
        index = self.partial_names.index(name)
        if class_labels is not None:
            index = class_labels * len(self.partial_names) + index  # (B,)
        mean, std = (statistic[index].view(-1, 1, 1) for statistic in (self.partial_mean, self.partial_std))
        return scoring.standardize(partial, mean, std)

    def combine(self, partials: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Eq. 11: weighted sum over terms of the mean over timesteps of standardised partial maps, `(batch, height, width)`."""
        shares = {name: self.config.weights.get(name.partition("@")[0], 0.0) for name in self.partial_names}
        shares = {
            name: weight / len(self.config.timesteps) if "@" in name else weight for name, weight in shares.items() if weight
        }
        return scoring.weighted_sum(partials, shares)

    def fit(self, partials: np.ndarray, class_labels: Sequence[int] | None = None) -> None:
        """Statistics of every term, then the scores that normal images get under them; for each class by itself.

        Args:
            partials: `(images, len(partial_names), height, width)` raw partial maps of held-out normal images; may be
                memory-mapped, one image is read at a time.
            class_labels: category of each image, where there are several.

        Raises:
            ValueError: if there are no images (of a class) or a map is not finite.
        """
        labels = np.zeros(len(partials), dtype=int) if class_labels is None else np.asarray(class_labels)
        scores, maxima = [], []
        for label in range(len(self.normals_per_class)):
            chosen = np.flatnonzero(labels == label)
            if len(chosen) == 0:
                raise ValueError(
                    "calibration needs normal images" + (f" of every class, got none of {label}" if label else ", got none")
                )
            self._fit_statistics(partials, chosen, label)
            class_scores, class_maxima = self._score_normals(partials, chosen, label)
            scores.append(np.sort(class_scores))
            maxima.append(np.sort(class_maxima))
        counts = [len(of_class) for of_class in scores]
        self.register_to_config(num_normals=counts[0] if isinstance(self.config.num_normals, int) else counts)
        self.normal_scores = torch.as_tensor(np.concatenate(scores), dtype=torch.float32, device=self.partial_mean.device)
        self.normal_maxima = torch.as_tensor(np.concatenate(maxima), dtype=torch.float32, device=self.partial_mean.device)

    def _fit_statistics(self, partials: np.ndarray, chosen: np.ndarray, label: int) -> None:
        count = len(chosen) * partials[0, 0].size
        mean, mean_square = np.zeros(partials.shape[1]), np.zeros(partials.shape[1])
        for image in (partials[i] for i in chosen):
            mean += image.sum(axis=(1, 2), dtype=np.float64) / count
            mean_square += np.square(image, dtype=np.float64).sum(axis=(1, 2)) / count
        if not np.isfinite(mean_square).all():
            raise ValueError("partial maps of the normal images are not finite; use float32 or bfloat16 weights")
        std = np.sqrt(np.maximum(mean_square - mean**2, 0))
        first = label * len(self.partial_names)
        for index, name in enumerate(self.partial_names):
            if name.partition("@")[0] in self.config.standardized_terms:
                self.partial_mean[first + index] = mean[index]
                self.partial_std[first + index] = max(std[index], 1e-12)

    def _score_normals(self, partials: np.ndarray, chosen: np.ndarray, label: int) -> tuple[list[float], list[float]]:
        """Image scores and highest pixels of the chosen images, under the statistics of their class."""
        scores, maxima, labels = [], [], torch.tensor([label], device=self.partial_mean.device)
        for image in (partials[i] for i in chosen):
            raw = zip(self.partial_names, torch.from_numpy(np.array(image)), strict=True)
            anomaly_map = self.combine({name: self.standardize(name, partial[None], labels) for name, partial in raw})
            scores.append(scoring.image_score(anomaly_map, self.config.top_k).item())
            maxima.append(scoring.image_score(anomaly_map).item())
        return scores, maxima

    def p_values(self, scores: np.ndarray, class_labels: Sequence[int] | None = None) -> np.ndarray:
        """Conformal p-values (1 + #{normal >= score}) / (n + 1): P(p <= a) <= a for a normal part (of that class), any a."""
        labels = np.zeros(len(scores), dtype=int) if class_labels is None else np.asarray(class_labels)
        p_values = np.empty(len(scores))
        for label in np.unique(labels):
            normal = self._of_class(self.normal_scores, label)
            at_least = len(normal) - np.searchsorted(normal, scores[labels == label], side="left")
            p_values[labels == label] = (1 + at_least) / (len(normal) + 1)
        return p_values

    def image_threshold(self, false_alarm_rate: float, class_label: int = 0) -> float:
        """Scores above it are called defective; a normal part exceeds it with at most the given probability."""
        return conformal_threshold(self._of_class(self.normal_scores, class_label), false_alarm_rate)

    def pixel_threshold(self, false_alarm_rate: float, class_label: int = 0) -> float:
        """Pixels above it are called defective; a normal part has any such pixel with at most the given probability."""
        return conformal_threshold(self._of_class(self.normal_maxima, class_label), false_alarm_rate)

    def _of_class(self, scores: torch.Tensor, class_label: int) -> np.ndarray:
        return scores.split(self.normals_per_class)[class_label].cpu().numpy()


def conformal_threshold(normal_scores: np.ndarray, false_alarm_rate: float) -> float:
    """Smallest threshold that a new exchangeable normal score exceeds with probability at most `false_alarm_rate`.

    With n sorted scores it is the k-th, k = ceil((n + 1) (1 - rate)). Too few scores for the rate (k > n) leave only the
    highest, whose guarantee is 1 / (n + 1): a warning says so.

    Raises:
        ValueError: if there are no scores, or the rate is not in (0, 1).
    """
    n = len(normal_scores)
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must lie between 0 and 1, got {false_alarm_rate}")
    if n == 0:
        raise ValueError("no normal scores: calibrate the pipeline on held-out normal images first")
    rank = math.ceil((n + 1) * (1 - false_alarm_rate) - 1e-9)
    if rank > n:
        needed = math.ceil(1 / false_alarm_rate - 1e-9) - 1
        warnings.warn(
            f"{n} held-out normal images guarantee a false-alarm rate of {1 / (n + 1):.3f} at best, not "
            f"{false_alarm_rate}: that needs {needed}",
            stacklevel=2,
        )
    return float(np.sort(normal_scores)[min(rank, n) - 1])
