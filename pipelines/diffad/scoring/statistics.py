"""What the score remembers of good images: numbers of each image that add up to those of all."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch

from . import conformal, terms
from .config import ScoreConfig, pixels_of
from .tails import Tail, fit_tail

# Pixels that stand for those of an image where a tail is fitted: its highest ones all, and evenly many of the others.
HIGHEST_PIXELS, OTHER_PIXELS = 256, 512
# What is believed of a verdict's spread before images are seen, and how many images that is worth: a tenth of the mean is
# usual, and one or two images say nothing.
PRIOR_SPREAD, PRIOR_IMAGES = 0.1, 3


@dataclass(frozen=True)
class TermStatistics:
    """Statistics of the pixels of n images under one score; those of several images add up to those of all.

    Args:
        count: `(1,)`, pixels of each of M term maps.
        total, total_square: `(M, 1)` float64, sums over them.
        samples: `(K, s)`, pixels of the K terms of the anomaly map that stand for all.
        sample_weights: `(s,)`, how many pixels each stands for.
        highest: `(V, n)`, of the V terms of the verdict the mean of each image's highest pixels.
    """

    count: np.ndarray
    total: np.ndarray
    total_square: np.ndarray
    samples: np.ndarray
    sample_weights: np.ndarray
    highest: np.ndarray

    @classmethod
    def of(cls, term_maps: Mapping[str, torch.Tensor], inside: torch.Tensor, config: ScoreConfig) -> "TermStatistics":
        """Statistics of one image: the pixels of its raw term maps `(H, W)`, by name, that are `inside`, bool `(H, W)`."""
        pixels = {name: term_map[inside.to(term_map.device)] for name, term_map in term_maps.items()}
        # Of terms that the model can't measure nothing is known, and nothing is asked for
        unknown = torch.zeros_like(next(iter(pixels.values())))
        of_maps = torch.stack([pixels.get(name, unknown) for name in config.term_map_names]).cpu().numpy()  # (M, pixels)
        by_term = terms.mean_over_timesteps(pixels)
        fused = config.map_terms if config.fusion == "tails" else ()
        sampled = [_sampled(by_term[term].cpu().numpy()) for term in fused]
        highest = [
            terms.image_score(by_term[term][None, None], pixels_of(config.verdict_area, int(inside.sum())))
            for term in config.verdict_terms
        ]
        return cls(
            count=np.array([of_maps.shape[1]]),
            total=of_maps.sum(axis=1, dtype=np.float64)[:, None],
            total_square=np.square(of_maps, dtype=np.float64).sum(axis=1)[:, None],
            samples=np.stack([values for values, _ in sampled]) if sampled else np.empty((0, 0)),
            sample_weights=sampled[0][1] if sampled else np.empty(0),
            highest=torch.stack(highest).cpu().numpy() if highest else np.empty((0, 1)),
        )

    @classmethod
    def sum(cls, of_images: list["TermStatistics"]) -> "TermStatistics":
        """Statistics of all images together."""
        joined = {field.name: np.concatenate([getattr(s, field.name) for s in of_images], axis=-1) for field in fields(cls)}
        sums = {name: joined[name].sum(axis=-1, keepdims=True) for name in ("count", "total", "total_square")}
        return cls(**{**joined, **sums})

    @property
    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """`(M,)` each, of the pixels."""
        mean = self.total[:, 0] / self.count
        return mean, np.sqrt(np.maximum(self.total_square[:, 0] / self.count - mean**2, 0))

    @property
    def tail(self) -> Tail:
        """Tails of the anomaly map's K terms."""
        return Tail(*map(np.concatenate, zip(*(fit_tail(values, self.sample_weights) for values in self.samples))))

    @property
    def verdict_mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """`(V,)` each, over the images; see [`drawn_mean_and_std`]."""
        return drawn_mean_and_std(self.highest)


def drawn_mean_and_std(highest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread `(V,)` of image scores `(V, n)` of good images; the spread is drawn towards a tenth of the mean, more so
    for few images."""
    mean = highest.mean(axis=1)
    squares = np.square(highest - mean[:, None]).sum(axis=1)
    prior = PRIOR_IMAGES * np.square(PRIOR_SPREAD * mean)
    return mean, np.sqrt((prior + squares) / (PRIOR_IMAGES + highest.shape[1] - 1))


def _sampled(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that stand for pixels `(n,)`, and how many each stands for."""
    ascending = np.sort(pixels)
    lower, highest = ascending[:-HIGHEST_PIXELS], ascending[-HIGHEST_PIXELS:]
    if len(lower) <= OTHER_PIXELS:
        return ascending, np.ones(len(ascending))
    places = ((np.arange(OTHER_PIXELS) + 0.5) * len(lower) / OTHER_PIXELS).astype(int)
    weights = np.concatenate([np.full(OTHER_PIXELS, len(lower) / OTHER_PIXELS), np.ones(len(highest))])
    return np.concatenate([lower[places], highest]), weights


def split_for_statistics(images: np.ndarray, seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices of calibration images into those for the statistics and those for the thresholds, drawn by `seed`.

    With statistics of its own image a score is lower than a new image's: the terms in which the image stands out have a larger
    spread and so weigh less. Few images do, because each has as many samples as pixels.

    Args:
        images: `(n,)` indices, of images or of groups of them.
        share: of the statistics, as [`~diffad.scoring.conformal.images_behind_thresholds`] has it.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed), device="cpu").numpy()
    count = len(images) - conformal.images_behind_thresholds(len(images), share)
    return np.sort(images[order[:count]]), np.sort(images[order[count:]])
