"""Scores by tail probabilities and with a verdict of their own: formulas written out, saving, judging, guarantee."""

import copy
import json

import numpy as np
import pytest
import torch
from diffad import Calibration
from diffad.scoring.statistics import split_for_statistics
from diffad.scoring.tails import KNOT_SHARES, fit_tail
from fixed_maps import fit, random_maps
from scipy.stats import genpareto

SETTINGS = {
    "timesteps": (20, 401),
    "fusion": "tails",
    "weights": {"residual": 2.0, "rgb": 0.5},  # neither in the order of the terms nor in that of the alphabet
    "verdict": {"residual": 1.0, "mahalanobis": 3.0, "kl": 0.5},
    "verdict_area": 0.1,
    "statistics_share": 1 / 3,
}
LEVELS = -np.log10(1 - np.array(KNOT_SHARES))


def by_term(calibration: Calibration, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Raw maps `(N, M, H, W)` by term, the mean over timesteps, `(N, H, W)`."""
    names = [name.split("@")[0] for name in calibration.term_map_names]
    return {term: maps[:, [n == term for n in names]].astype(np.float64).mean(axis=1) for term in names}


def naive_decades(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """-log10 of the share of good pixels that are at least as high, by numpy and scipy."""
    tail = fit_tail(good.ravel(), np.ones(good.size))
    knots = tail.knots[0]
    beyond = -np.log10(0.01 * genpareto.sf(np.maximum(values - knots[-1], 0), tail.shape[0], scale=tail.scale[0]))
    return np.where(values > knots[-1], beyond, np.interp(values, knots, LEVELS))


class Naive:
    """The score of SETTINGS from all maps of the statistics images `(n, M, H, W)` in memory."""

    def __init__(self, calibration: Calibration, good: np.ndarray, inside: np.ndarray):
        self.calibration, self.good, self.inside = calibration, by_term(calibration, good), inside
        self.pixels = max(1, round(0.1 * inside.sum()))

    def highest(self, image: np.ndarray) -> float:
        return np.sort(image[self.inside])[-self.pixels :].mean()

    def map(self, maps: np.ndarray) -> np.ndarray:
        new = by_term(self.calibration, maps)
        return sum(
            weight * naive_decades(new[term], self.good[term][:, self.inside]) for term, weight in SETTINGS["weights"].items()
        )

    def scores(self, maps: np.ndarray) -> np.ndarray:
        new, weights = by_term(self.calibration, maps), SETTINGS["verdict"]
        standardized = []
        for term in weights:
            good = np.array([self.highest(image) for image in self.good[term]])
            variance = (3 * (0.1 * good.mean()) ** 2 + np.square(good - good.mean()).sum()) / (3 + len(good) - 1)
            standardized.append([(self.highest(image) - good.mean()) / variance**0.5 for image in new[term]])
        return np.average(standardized, axis=0, weights=list(weights.values()))


def named_maps(calibration: Calibration, maps: np.ndarray) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(maps[:, i]) for i, name in enumerate(calibration.term_map_names)}


def score(calibration: Calibration, maps: np.ndarray, category=None) -> tuple[torch.Tensor, torch.Tensor]:
    named = named_maps(calibration, maps)
    anomaly_maps = calibration.anomaly_maps(named, category)
    return anomaly_maps, calibration.scores(named, anomaly_maps, category)


def fitted(count: int = 30, **settings) -> tuple[Calibration, np.ndarray]:
    calibration = Calibration(**{**SETTINGS, **settings})
    maps = random_maps(calibration, count, size=(9, 11))
    fit(calibration, maps)
    return calibration, maps


@pytest.fixture(scope="module")
def calibrated() -> tuple[Calibration, np.ndarray]:
    return fitted()


def test_map_score_and_thresholds_match_the_formulas_written_out(calibrated):
    calibration, maps = calibrated
    of_statistics, of_thresholds = split_for_statistics(np.arange(30), seed=0, share=1 / 3)
    assert len(of_statistics) == 10
    naive = Naive(calibration, maps[of_statistics], np.ones((9, 11), dtype=bool))
    anomaly_maps, scores = score(calibration, maps)
    np.testing.assert_allclose(anomaly_maps, naive.map(maps), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, naive.scores(maps), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(calibration.calibration_scores, np.sort(naive.scores(maps[of_thresholds])), rtol=1e-4, atol=1e-4)
    maxima = np.sort(naive.map(maps[of_thresholds]).max(axis=(1, 2)))
    np.testing.assert_allclose(calibration.calibration_maxima, maxima, rtol=1e-4)


def test_without_a_verdict_the_score_is_the_highest_of_the_map():
    calibration, maps = fitted(verdict={}, top_k=3)
    anomaly_maps, scores = score(calibration, maps)
    np.testing.assert_allclose(scores, np.sort(anomaly_maps.flatten(1))[:, -3:].mean(axis=1), rtol=1e-6)
    assert not hasattr(calibration, "verdict_mean")


def test_statistics_are_fitted_even_where_no_term_is_standardised():
    calibration, maps = fitted(standardized_terms=())
    expected, _ = fitted()
    assert torch.equal(calibration.tail_knots, expected.tail_knots) and calibration.tail_knots.abs().min() > 0
    assert torch.equal(calibration.calibration_scores, expected.calibration_scores)


def test_only_the_region_of_interest_counts():
    calibration = Calibration(**SETTINGS)
    inside = np.zeros((9, 11), dtype=bool)
    inside[2:8, 3:] = True
    calibration.set_roi(torch.from_numpy(inside))
    maps = random_maps(calibration, 30, size=(9, 11))
    fit(calibration, maps)
    naive = Naive(calibration, maps[split_for_statistics(np.arange(30), seed=0, share=1 / 3)[0]], inside)
    changed = maps.copy()
    changed[:, :, ~inside] += 1000
    anomaly_maps, scores = score(calibration, changed)
    np.testing.assert_allclose(anomaly_maps[:, inside], naive.map(maps)[:, inside], rtol=1e-4, atol=1e-4)
    assert (anomaly_maps[:, ~inside] == 0).all()
    np.testing.assert_allclose(scores, naive.scores(maps), rtol=1e-4, atol=1e-4)


def test_each_category_has_statistics_of_its_own():
    together = Calibration(**SETTINGS, num_calibration_images=(0, 0, 0))
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [7, 4, 12]))
    maps = random_maps(together, 23, size=(9, 11)) * (1 + labels).reshape(-1, 1, 1, 1).astype(np.float32)
    fit(together, maps, labels)
    together_maps, together_scores = score(together, maps, torch.from_numpy(labels))
    for label in range(3):
        alone, chosen = Calibration(**SETTINGS), labels == label
        fit(alone, maps[chosen])
        np.testing.assert_allclose(together.calibration_scores_of(label), alone.calibration_scores, rtol=1e-5, atol=1e-5)
        expected_maps, expected_scores = score(alone, maps[chosen])
        of_label = score(together, maps[chosen], label), score(together, maps[chosen], torch.tensor([label]))
        for actual_maps, actual_scores in (*of_label, (together_maps[chosen], together_scores[chosen])):
            torch.testing.assert_close(actual_maps, expected_maps, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(actual_scores, expected_scores, rtol=1e-5, atol=1e-5)


# Saving and loading


@pytest.mark.parametrize("sort_keys", [False, True])
def test_saved_and_loaded_scores_are_bit_equal_in_whatever_order_weights_are_saved(sort_keys, calibrated, tmp_path):
    calibration, maps = calibrated
    calibration.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()), sort_keys=sort_keys))
    loaded = Calibration.from_pretrained(tmp_path)
    for actual, expected in zip(score(loaded, maps), score(calibration, maps), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    state = calibration.state_dict()
    assert {"tail_knots", "tail_scale", "tail_shape", "verdict_mean", "verdict_std"} <= state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["tail_scale", "tail_shape", "verdict_std", "term_std"])
def test_saved_spread_that_is_not_positive_is_refused(name, calibrated, tmp_path):
    calibration = copy.deepcopy(calibrated[0])
    getattr(calibration, name)[-1] = 0
    calibration.save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError), match=f"{name} is not positive"):
        Calibration.from_pretrained(tmp_path)


@pytest.mark.parametrize("settings", [{"fusion": "tails"}, {"verdict": {"kl": 1.0}}])
def test_standardisation_per_image_is_refused(settings):
    with pytest.raises(ValueError, match="per_image"):
        Calibration(per_image=True, **settings)


# Judging


def test_masks_follow_the_verdict():
    """Empty exactly if the part is called good, whatever the map's threshold says; around the highest pixel otherwise."""
    calibration, _ = fitted(mask_edge=0.7)
    rng = np.random.default_rng(0)
    threshold, peak = calibration.image_threshold(0.2), calibration.pixel_threshold(0.2)
    maps = [rng.uniform(0, height, size=(9, 11)).astype(np.float32) for height in peak * rng.uniform(0.1, 3, 60)]
    scores = (threshold + rng.normal(size=60)).astype(np.float32)
    unknown = np.arange(60) % 10 == 0
    verdicts = calibration.judge(scores, maps, np.full(60, 0.2), None, unknown)
    np.testing.assert_array_equal([bool(mask.any()) for mask in verdicts.masks], verdicts.is_defective)
    np.testing.assert_array_equal(verdicts.is_defective, (scores > threshold) | unknown)
    kinds = {(bool(called), bool(m.max() > peak)) for called, m in zip(verdicts.is_defective, maps, strict=True)}
    assert len(kinds) == 4  # of all combinations of verdict and map there are some
    for mask, anomaly_map in zip(verdicts.masks, maps, strict=True):
        if mask.any():
            assert mask.flatten()[anomaly_map.argmax()]
            assert (anomaly_map[mask] >= 0.7 * min(peak, anomaly_map.max())).all()


# Guarantee


def test_statistics_and_thresholds_do_not_share_images(calibrated):
    calibration, maps = calibrated
    of_statistics, of_thresholds = split_for_statistics(np.arange(30), seed=0, share=1 / 3)
    assert not set(of_statistics) & set(of_thresholds)
    changed, again = maps.copy(), Calibration(**SETTINGS)
    changed[of_thresholds] *= 3
    scorer = fit(again, changed)
    assert scorer.asked == [*of_statistics, *of_thresholds]
    for name in ("tail_knots", "tail_scale", "tail_shape", "verdict_mean", "verdict_std", "term_mean", "term_std"):
        assert torch.equal(getattr(again, name), getattr(calibration, name))
    assert not torch.equal(again.calibration_scores, calibration.calibration_scores)


def test_false_alarms_keep_the_rate():
    """Images with outliers of their own, few to calibrate on: verdicts and masks of new ones, in the mean of many draws."""
    rng = np.random.default_rng(0)
    draws, new, rate = 150, 10, 1 / 5
    alarms, marked = [], []
    for _ in range(draws):
        calibration = Calibration(**{**SETTINGS, "timesteps": (20,), "verdict_area": 0.5})
        shape = (5 + new, len(calibration.term_map_names), 2, 2)
        maps = np.abs(rng.standard_t(df=2, size=shape) * rng.lognormal(size=(5 + new, 1, 1, 1))).astype(np.float32)
        fit(calibration, maps[:5])
        assert len(calibration.calibration_scores) == 4
        anomaly_maps, scores = score(calibration, maps[5:])
        alarms.append((scores.numpy() > calibration.image_threshold(rate)).mean())
        marked.append((anomaly_maps.amax(dim=(1, 2)).numpy() > calibration.pixel_threshold(rate)).mean())
    for realised in (alarms, marked):
        assert np.mean(realised) == pytest.approx(rate, abs=2.5 * np.std(realised) / draws**0.5)
