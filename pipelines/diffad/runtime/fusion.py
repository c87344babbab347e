"""From term maps to anomaly map and image score as arrays, where images are scored in tiles; else the graph does it.

The formulas are those of [`diffad.scoring.calibration`] and [`diffad.scoring.tails`], which the tests compare them with.
"""

from collections.abc import Mapping

import numpy as np

from ..imaging.array_maps import region_at, smooth_array
from ..scoring.config import ScoreConfig, pixels_of, term_of
from ..scoring.tails import Tail, decades_of_array
from .description import Statistics


def fuse(
    term_maps: Mapping[str, np.ndarray],
    config: ScoreConfig,
    statistics: Statistics,
    region: np.ndarray | None = None,
    region_share: float = 1.0,
    outside_level: float = 0.0,
) -> tuple[np.ndarray, float]:
    """Anomaly map `(H, W)` and image score.

    Args:
        term_maps: of one image, `(H, W)` each, blended and not smoothed, by name (`rgb@20`, ..., `mahalanobis`).
        statistics: of its category.
        region: of interest, bool at any size; None is everywhere.
        region_share: share of the image that is inside.
        outside_level: of the anomaly map outside the region.
    """
    smoothed = {name: smooth_array(term_map, config.smoothing_sigma) for name, term_map in term_maps.items()}
    by_term = _mean_over_timesteps(smoothed)
    inside = region_at(region, next(iter(smoothed.values())).shape)
    if config.fusion == "tails":
        maps = {term: decades_of_array(by_term[term], tail) for term, tail in _tails(config, statistics).items()}
        anomaly_map = sum(config.weights[term] * maps[term] for term in maps)
    else:
        anomaly_map = sum(
            share * _standardized(name, smoothed[name], config, statistics) for name, share in config.shares.items()
        )
    anomaly_map = np.where(inside, anomaly_map, outside_level).astype(np.float32)
    if not config.verdict:
        return anomaly_map, _mean_of_highest(anomaly_map[inside], config.top_k)
    pixels = pixels_of(config.verdict_area, round(region_share * inside.size))
    score = 0.0
    for term, mean, std in zip(config.verdict_terms, statistics.verdict_mean, statistics.verdict_std, strict=True):
        score += config.verdict[term] * (_mean_of_highest(by_term[term][inside], pixels) - mean) / std
    return anomaly_map, score / sum(config.verdict.values())


def _tails(config: ScoreConfig, statistics: Statistics) -> dict[str, Tail]:
    parts = zip(statistics.tail_knots, statistics.tail_scale, statistics.tail_shape, strict=True)
    tails = [Tail(*(np.array([part]) for part in of_term)) for of_term in parts]
    return dict(zip(config.map_terms, tails, strict=True))


def _standardized(name: str, term_map: np.ndarray, config: ScoreConfig, statistics: Statistics) -> np.ndarray:
    if config.per_image and term_of(name) in config.standardized_terms:
        return (term_map - term_map.mean()) / max(term_map.std(ddof=1), 1e-12)
    index = config.term_map_names.index(name)
    return (term_map - statistics.term_mean[index]) / statistics.term_std[index]


def _mean_over_timesteps(term_maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    of_term: dict[str, list[np.ndarray]] = {}
    for name, term_map in term_maps.items():
        of_term.setdefault(term_of(name), []).append(term_map)
    return {term: np.mean(maps, axis=0) for term, maps in of_term.items()}


def _mean_of_highest(values: np.ndarray, count: int) -> float:
    return float(np.partition(values, -count)[-count:].mean())
