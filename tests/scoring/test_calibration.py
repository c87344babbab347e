"""Calibration: forming a score from term maps, judging it, saving and loading."""

import json
import warnings

import numpy as np
import pytest
import torch
from diffad import Calibration
from diffad.scoring import conformal
from diffad.scoring.config import ScoreConfig
from diffad.scoring.judging import check_finite
from diffad.scoring.terms import standardize_per_image
from fixed_maps import fit, moments, random_maps, with_scores

LABELS = [0, 1, 2] * 2


def with_statistics(calibration: Calibration, mean: np.ndarray, std: np.ndarray) -> Calibration:
    """One category after the other; mean and std are `(categories, M)`."""
    for category, (m, s) in enumerate(zip(mean, std, strict=True)):
        calibration.set_statistics(moments(m, s), category)
    return calibration


def named_maps(calibration: Calibration, count: int = 2) -> dict[str, torch.Tensor]:
    maps = torch.from_numpy(random_maps(calibration, count))
    return {name: maps[:, i] for i, name in enumerate(calibration.term_map_names)}


# Forming a score


@pytest.mark.parametrize("standardized_terms", [("kl", "rgb", "feature", "residual", "mahalanobis"), ("kl",), ()])
def test_terms_are_standardised_by_the_statistics_of_good_images_where_settings_say_so(standardized_terms):
    calibration = Calibration(timesteps=(20, 401), standardized_terms=standardized_terms)
    mean, std = np.random.default_rng(0).uniform(1, 2, size=(2, 1, 8))
    maps = named_maps(with_statistics(calibration, mean, std))
    for i, (name, standardized) in enumerate(calibration.standardize(maps).items()):
        chosen = name.split("@")[0] in standardized_terms
        expected = (maps[name] - mean[0, i]) / std[0, i] if chosen else maps[name]
        np.testing.assert_allclose(standardized, expected, rtol=1e-5, atol=1e-5)


def test_every_image_is_standardised_by_the_statistics_of_its_category():
    calibration = Calibration(timesteps=(20,), num_calibration_images=(0, 0, 0))
    mean, std = np.random.default_rng(0).uniform(1, 2, size=(2, 3, 5))
    maps = named_maps(with_statistics(calibration, mean, std), count=6)
    together = calibration.standardize(maps, torch.tensor(LABELS))
    for i, label in enumerate(LABELS):
        alone = calibration.standardize({name: m[i : i + 1] for name, m in maps.items()}, torch.tensor([label]))
        for index, name in enumerate(maps):
            assert torch.equal(alone[name][0], together[name][i])
            np.testing.assert_allclose(alone[name][0], (maps[name][i] - mean[label, index]) / std[label, index], rtol=1e-4)


def test_standardisation_per_image_ignores_the_statistics_of_good_images():
    calibration = Calibration(per_image=True, standardized_terms=("kl",))
    with_statistics(calibration, np.full((1, 11), 3.0), np.full((1, 11), 2.0))
    raw = torch.rand(2, 5, 4)
    standardized = calibration.standardize({"kl@20": raw, "mahalanobis": raw})
    assert torch.equal(standardized["kl@20"], standardize_per_image(raw)) and torch.equal(standardized["mahalanobis"], raw)


def test_combine_needs_the_weighted_terms_only():
    calibration = Calibration(timesteps=(20, 201), weights={"kl": 0.5, "mahalanobis": 0.25, "rgb": 0.0})
    maps = {"kl@20": torch.rand(2, 3, 4), "kl@201": torch.rand(2, 3, 4), "mahalanobis": torch.rand(2, 3, 4)}
    expected = 0.25 * maps["kl@20"] + 0.25 * maps["kl@201"] + 0.25 * maps["mahalanobis"]
    torch.testing.assert_close(calibration.combine(maps), expected)


def test_term_map_without_spread_does_not_divide_by_zero():
    calibration = Calibration()
    maps = random_maps(calibration)
    maps[:, 0] = 7
    fit(calibration, maps)
    assert (calibration.standardize({"kl@20": torch.full((1, 5, 4), 7.0)})["kl@20"] == 0).all()
    assert calibration.calibration_scores.isfinite().all()


@pytest.mark.parametrize("top_k", [1, 3])
def test_only_the_region_of_interest_is_scored(top_k):
    calibration = Calibration(weights={"mahalanobis": 1.0}, top_k=top_k)
    inside = torch.zeros(5, 4, dtype=torch.bool)
    inside[1:4, 2:] = True
    calibration.set_roi(inside)
    maps = torch.randn(3, 5, 4) + 5 * ~inside
    expected = [np.sort(m[inside.numpy()])[-top_k:].mean() for m in maps.numpy()]
    np.testing.assert_allclose(calibration.image_scores(maps), expected, rtol=1e-6)
    combined = calibration.combine({"mahalanobis": maps})
    assert torch.equal(combined[:, inside], maps[:, inside]) and (combined[:, ~inside] == 0).all()
    assert torch.equal(calibration.inside((5, 4)), inside)
    calibration.set_roi(None)
    assert torch.equal(calibration.combine({"mahalanobis": maps}), maps)


def test_outside_the_region_of_interest_is_below_negative_thresholds():
    calibration = with_scores(np.array([-4.0, -3.0]))
    inside = torch.zeros(5, 4, dtype=torch.bool)
    inside[0] = True
    calibration.set_roi(inside)
    assert (calibration.combine({"mahalanobis": torch.zeros(1, 5, 4)})[:, 1:] == -5).all()


def test_region_of_interest_smaller_than_the_pixels_of_the_score_is_refused():
    inside = torch.zeros(5, 4, dtype=torch.bool)
    inside[0, :3] = True
    with pytest.raises(ValueError, match="region of interest has 3 pixels, but top_k is 4"):
        Calibration(top_k=4).set_roi(inside)
    Calibration(top_k=3).set_roi(inside)


# Judging


@pytest.mark.parametrize(("count", "rate"), [(1, 1 / 2), (4, 1 / 5), (18, 1 / 19)])
def test_default_rate_is_the_smallest_supported_one_where_5_percent_is_not_and_says_so(count, rate):
    calibration = with_scores(np.arange(count, dtype=float))
    with pytest.warns(UserWarning, match=f"{count} calibration images .* {rate:.3g} at best.*0.05, which needs 21"):
        assert calibration.supported_rate() == rate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert calibration.image_threshold(calibration.supported_rate()) == count - 1


@pytest.mark.parametrize("count", [19, 20, 500])
def test_default_rate_is_5_percent_where_supported(count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_scores(np.arange(count, dtype=float)).supported_rate() == 0.05


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19)])
def test_unsupported_rate_is_refused(rate, needed):
    assert with_scores(np.arange(needed, dtype=float)).supported_rate(rate) == rate
    if needed > 1:
        with pytest.raises(ValueError, match=f"needs {needed} .*there are {needed - 1}"):
            with_scores(np.arange(needed - 1, dtype=float)).supported_rate(rate)


def test_uncalibrated_thresholds_are_refused():
    assert not Calibration().is_fitted
    for ask in (lambda c: c.image_threshold(0.05), lambda c: c.pixel_threshold(0.05), lambda c: c.supported_rate()):
        with pytest.raises(ValueError, match="calibrate"):
            ask(Calibration())


def test_order_of_the_calibration_scores_does_not_matter():
    scores = np.random.default_rng(0).normal(size=30)
    shuffled = np.random.default_rng(1).permutation(scores)
    assert with_scores(scores).image_threshold(0.2) == with_scores(shuffled).image_threshold(0.2)
    assert with_scores(scores).pixel_threshold(0.2) == with_scores(shuffled).pixel_threshold(0.2)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25, 0.5])
def test_verdict_and_p_value_agree(rate, ties):
    scores = np.random.default_rng(0).normal(size=39)
    calibration = with_scores(np.round(scores) if ties else scores)
    new = np.concatenate([calibration.calibration_scores.numpy(), np.linspace(-4, 6, 101, dtype=np.float32)])
    np.testing.assert_array_equal(new > calibration.image_threshold(rate), calibration.p_values(new) <= rate + 1e-12)


def test_each_category_is_judged_by_its_own_scores():
    rng = np.random.default_rng(0)
    of_category = [rng.normal(label, size=n) for label, n in enumerate((6, 3, 11))]
    together = with_scores(*of_category)
    assert together.images_per_category == [6, 3, 11] and together.is_fitted
    scores, categories = rng.normal(size=30).astype(np.float32), rng.integers(0, 3, size=30)
    p_values = together.p_values(scores, categories)
    rates = together.rates(0.5, categories.tolist(), 30)
    maps = [rng.normal(size=(4, 5)).astype(np.float32) for _ in scores]
    verdicts = together.judge(scores, maps, rates, categories.tolist(), unknown=np.zeros(30, dtype=bool))
    for label, own in enumerate(of_category):
        alone, chosen = with_scores(own), categories == label
        assert together.image_threshold(0.5, label) == alone.image_threshold(0.5)
        assert together.pixel_threshold(0.5, label) == alone.pixel_threshold(0.5)
        np.testing.assert_array_equal(together.calibration_scores_of(label), alone.calibration_scores_of())
        np.testing.assert_array_equal(p_values[chosen], alone.p_values(scores[chosen]))
        np.testing.assert_array_equal(verdicts.p_values[chosen], p_values[chosen])
        np.testing.assert_array_equal(verdicts.is_defective[chosen], scores[chosen] > alone.image_threshold(0.5))
        for i in np.flatnonzero(chosen):
            assert np.array_equal(verdicts.masks[i], maps[i] > alone.pixel_threshold(0.5))
    assert len({together.image_threshold(0.5, label) for label in range(3)}) == 3
    assert set(verdicts.false_alarm_rates) == {0.5}


def test_rates_are_those_that_each_category_supports():
    calibration = with_scores(np.arange(3.0), np.arange(30.0))
    with pytest.warns(UserWarning, match="3 calibration images of category 0 .* 0.25 at best"):
        assert calibration.rates(None, [1, 0, 1], 3).tolist() == [0.05, 0.25, 0.05]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibration.rates(None, [1, 1], 2).tolist() == [0.05, 0.05]
    with pytest.raises(ValueError, match="there are 3"):
        calibration.supported_rates(0.05)
    assert calibration.supported_rates(0.05, [1]) == {1: 0.05}


def test_score_that_is_not_finite_is_refused_because_it_would_pass_for_good():
    for broken in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="score of image 1 is not finite"):
            check_finite(np.array([0.0, broken]))
        with pytest.raises(ValueError, match="score of image 1 is not finite"):
            maps, known = [np.zeros((2, 2), dtype=np.float32)] * 2, np.zeros(2, dtype=bool)
            with_scores(np.arange(9.0)).judge(np.array([0.0, broken]), maps, np.full(2, 0.5), None, known)


# Saving and loading


def test_saved_calibration_loads_bit_equal(tmp_path):
    settings = {
        "timesteps": (401, 20),
        "num_inference_steps": None,
        "weights": {"rgb": 0.7, "kl": 0.2, "mahalanobis": 0.1},
        "standardized_terms": ("kl", "rgb"),
        "smoothing_sigma": 2.5,
        "top_k": 4,
        "seed": 9,
    }
    calibration = Calibration(**settings)
    maps = random_maps(calibration)
    fit(calibration, maps)
    calibration.save_pretrained(tmp_path)
    loaded = Calibration.from_pretrained(tmp_path)
    assert loaded.is_fitted and loaded.config.num_calibration_images == len(loaded.calibration_scores) == 5
    for name, value in settings.items():
        kept = loaded.config[name]
        assert (tuple(kept) if isinstance(kept, list) else kept) == value
    state = calibration.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    named = {name: torch.from_numpy(maps[:, i]) for i, name in enumerate(loaded.term_map_names)}
    assert torch.equal(loaded.combine(loaded.standardize(named)), calibration.combine(calibration.standardize(named)))
    assert loaded.image_threshold(0.2) == calibration.image_threshold(0.2)


def test_number_of_calibration_images_is_saved_even_after_fitting_twice(tmp_path):
    calibration = with_scores(np.arange(9.0))
    calibration.set_scores([np.arange(4.0)], [np.arange(4.0)])
    calibration.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_calibration_images"] == 4
    assert len(Calibration.from_pretrained(tmp_path).calibration_maxima) == 4


def test_unfitted_calibration_survives_saving(tmp_path):
    Calibration().save_pretrained(tmp_path)
    assert not Calibration.from_pretrained(tmp_path).is_fitted


def test_unfitted_copy_keeps_settings_and_categories_only():
    calibration = with_scores(np.arange(9.0), np.arange(5.0))
    calibration.set_roi(torch.ones(4, 4, dtype=torch.bool))
    copy = calibration.unfitted(top_k=3)
    assert copy.score_config == ScoreConfig(**{**vars(calibration.score_config), "top_k": 3})
    assert copy.images_per_category == [0, 0] and not copy.is_fitted and copy.roi is None
    assert calibration.is_fitted and calibration.image_threshold(0.2) == conformal.conformal_threshold(np.arange(9.0), 0.2)
