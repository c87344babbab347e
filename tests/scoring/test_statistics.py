"""Statistics of good images: those of several add up, samples stand for all pixels, the verdict's formula written out."""

import numpy as np
import pytest
import torch
from diffad.scoring.config import ScoreConfig
from diffad.scoring.statistics import TermStatistics
from fixed_maps import named

CONFIG = ScoreConfig(
    timesteps=(20, 201),
    fusion="tails",
    weights={"residual": 1.0, "rgb": 0.5},
    verdict={"mahalanobis": 1.0, "kl": 2.0},
    verdict_area=0.02,
)


def heavy_maps(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """`(count, M, *size)`, each image with a level of its own."""
    rng = np.random.default_rng(seed)
    shape = (count, len(CONFIG.term_map_names), *size)
    return (rng.gamma(1.5, size=shape) ** 2 * rng.uniform(0.5, 2, size=(count, 1, 1, 1))).astype(np.float32)


def statistics_of(maps: np.ndarray, inside: np.ndarray, config: ScoreConfig = CONFIG) -> list[TermStatistics]:
    return [TermStatistics.of(named(config, torch.from_numpy(image)), torch.from_numpy(inside), config) for image in maps]


def of_term(maps: np.ndarray, term: str) -> np.ndarray:
    """Mean over timesteps, `(N, H, W)`, in float64."""
    chosen = [i for i, name in enumerate(CONFIG.term_map_names) if name.split("@")[0] == term]
    return maps[:, chosen].astype(np.float64).mean(axis=1)


def test_few_pixels_are_all_kept_and_those_of_several_images_add_up():
    maps, inside = heavy_maps(4, (12, 15)), np.random.default_rng(1).random((12, 15)) > 0.3
    parts = statistics_of(maps, inside)
    for total in (
        TermStatistics.sum(parts),
        TermStatistics.sum([TermStatistics.sum(parts[:1]), TermStatistics.sum(parts[1:])]),
    ):
        assert total.count.tolist() == [4 * inside.sum()] and total.sample_weights.sum() == 4 * inside.sum()
        for values, term in zip(total.samples, ("rgb", "residual"), strict=True):  # in the order of the terms
            np.testing.assert_allclose(np.sort(values), np.sort(of_term(maps, term)[:, inside].ravel()), rtol=1e-6)
        pixels = maps[:, :, inside].astype(np.float64)
        np.testing.assert_allclose(total.mean_and_std, [pixels.mean(axis=(0, 2)), pixels.std(axis=(0, 2))], rtol=1e-6)


def test_samples_with_their_weights_have_the_quantiles_of_all_pixels():
    maps, inside = heavy_maps(6, (96, 96)), np.ones((96, 96), dtype=bool)
    total = TermStatistics.sum(statistics_of(maps, inside))
    assert total.samples.shape == (2, 6 * 768) and total.sample_weights.sum() == pytest.approx(6 * 96 * 96)
    for values, knots, term in zip(total.samples, total.tail.knots, ("rgb", "residual"), strict=True):
        pixels = of_term(maps, term)
        np.testing.assert_allclose(knots[1:], np.quantile(pixels, [0.25, 0.5, 0.75, 0.85, 0.9, 0.95, 0.98, 0.99]), rtol=0.02)
        for image, start in zip(pixels, range(0, 6 * 768, 768)):  # of every image the highest ones are there
            np.testing.assert_allclose(np.sort(values[start : start + 768])[-256:], np.sort(image, axis=None)[-256:], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_verdict_follows_the_formula(count):
    """Mean and spread over images of the mean of each one's highest pixels; a tenth of the mean counts as three images."""
    maps, inside = heavy_maps(count, (20, 25), seed=count), np.random.default_rng(1).random((20, 25)) > 0.2
    pixels = round(0.02 * inside.sum())
    mean, std = TermStatistics.sum(statistics_of(maps, inside)).verdict_mean_and_std
    for i, term in enumerate(("kl", "mahalanobis")):
        highest = [np.sort(image[inside])[-pixels:].mean() for image in of_term(maps, term)]
        assert mean[i] == pytest.approx(np.mean(highest), rel=1e-5)
        variance = np.var(highest, ddof=1) if count > 1 else 0.0
        expected = (3 * (0.1 * np.mean(highest)) ** 2 + (count - 1) * variance) / (3 + count - 1)
        assert std[i] == pytest.approx(expected**0.5, rel=1e-4)


def test_a_score_without_tails_and_verdict_keeps_neither():
    config = ScoreConfig(timesteps=(20, 201))
    total = TermStatistics.sum(statistics_of(heavy_maps(3, (4, 5)), np.ones((4, 5), dtype=bool), config))
    assert total.samples.size == total.highest.size == 0
