"""Calibration without networks: term maps are given, and the grey level of an image says which of them are its own."""

from types import SimpleNamespace

import numpy as np
import torch
from diffad import Calibration
from diffad.scoring.config import ScoreConfig
from diffad.scoring.fitting import fit_calibration
from diffad.scoring.inputs import InputReader
from diffad.scoring.scorer import MeasuredMaps, Scorer
from diffad.scoring.statistics import TermStatistics


class FixedMaps(Scorer):
    """Scores by given term maps `(N, M, height, width)`, of up to 256 images."""

    def __init__(self, calibration: Calibration, maps: np.ndarray):
        torch.nn.Module.__init__(self)
        self.calibration, self.config, self.image_size = calibration, calibration.score_config, maps.shape[2:]
        self.maps = torch.from_numpy(maps)
        self.asked: list[int] = []  # images whose maps were asked for, in order

    def measure(self, images, category=None, terms=None, tiles_per_pass=8, detail=None) -> MeasuredMaps:
        index = ((images[:, 0, 0, 0] + 1) * 127.5).round().long()
        self.asked += index.tolist()
        return MeasuredMaps({name: self.maps[index, i] for i, name in enumerate(self.config.term_map_names)}, None)


def fit(
    calibration: Calibration,
    maps: np.ndarray,
    categories: np.ndarray | None = None,
    batch_size: int = 4,
    scorer_class: type[FixedMaps] = FixedMaps,
) -> FixedMaps:
    """Fits the calibration on the maps of good images."""
    names = [f"class {i}" for i in range(len(calibration.images_per_category))]
    discriminant = None if categories is None else SimpleNamespace(config=SimpleNamespace(class_names=names))
    scorer = scorer_class(calibration, maps.astype(np.float32))
    images = [np.full((8, 8), index, dtype=np.uint8) for index in range(len(maps))]
    fit_calibration(scorer, InputReader(scorer, discriminant, torch.device("cpu")), images, categories, batch_size)
    return scorer


def random_maps(calibration: Calibration, count: int = 6, size: tuple[int, int] = (5, 4)) -> np.ndarray:
    """`(count, M, *size)` with another mean and spread for every term map."""
    number = len(calibration.term_map_names)
    spread = np.arange(1, number + 1)[:, None, None]
    return (np.random.default_rng(0).gamma(2, size=(count, number, *size)) * spread + 10 * spread).astype(np.float32)


def moments(mean: np.ndarray, std: np.ndarray) -> TermStatistics:
    """Statistics whose M term maps have the given mean and standard deviation, `(M,)`, without terms of tails or a verdict."""
    none = {"samples": np.empty((0, 0)), "sample_weights": np.empty(0), "highest": np.empty((0, 1))}
    return TermStatistics(np.array([1]), mean[:, None], (std**2 + mean**2)[:, None], **none)


def named(config: ScoreConfig, maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Maps `(M, ...)` by the names of the score's term maps."""
    return dict(zip(config.term_map_names, maps, strict=True))


def with_scores(*scores: np.ndarray) -> Calibration:
    """Calibrated so that the calibration images of each category have just these scores and highest pixels."""
    one = len(scores) == 1
    calibration = Calibration(
        weights={"mahalanobis": 1.0}, standardized_terms=(), num_calibration_images=0 if one else [0] * len(scores)
    )
    calibration.set_scores(scores, scores)
    return calibration
