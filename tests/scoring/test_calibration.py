import json
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffad import Calibration
from diffad.scoring.calibration import TERMS, split_for_statistics
from diffad.scoring.conformal import check_supported, conformal_threshold, images_needed
from diffad.scoring.terms import standardize_per_image

RATES = (0.01, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 0.9, 0.99)


def exact(rate: float) -> Fraction:
    return Fraction(rate).limit_denominator(1000)


def score_pool(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return {
        "distinct": rng.normal(size=count),
        "ties": rng.integers(0, 5, size=count).astype(float),
        "all equal": np.full(count, 2.5),
    }[kind]


def leave_one_out(pool: np.ndarray):
    """Every split into normal scores and one new score: under exchangeability each is equally likely."""
    for i in range(len(pool)):
        yield np.delete(pool, i), pool[i]


def fitted(calibration_scores: np.ndarray) -> Calibration:
    """Calibrated so that the normal images have just these scores: one-pixel maps of one term, not standardised."""
    calibration = Calibration(weights={"mahalanobis": 1.0}, standardized_terms=())
    partials = np.zeros((len(calibration_scores), len(calibration.term_map_names), 1, 1), dtype=np.float32)
    partials[:, -1, 0, 0] = calibration_scores
    calibration.fit(partials)
    return calibration


# Thresholds


def brute_force_threshold(scores: np.ndarray, rate: Fraction) -> float | None:
    """The lowest normal score above which a new score, equally likely at each of n + 1 ranks, lies with at most `rate`."""
    for candidate in sorted(scores):
        if Fraction(len(scores) + 1 - int((scores <= candidate).sum()), len(scores) + 1) <= rate:
            return candidate
    return None


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal"])
@pytest.mark.parametrize("rate", RATES)
def test_threshold_matches_brute_force(rate, kind):
    for count in range(1, 120):
        scores = score_pool(kind, count)
        expected = brute_force_threshold(scores, exact(rate))
        if expected is None:
            with pytest.raises(ValueError, match=f"there are {count}"):
                conformal_threshold(scores, rate)
        else:
            assert conformal_threshold(scores, rate) == expected


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal"])
@pytest.mark.parametrize("count", [20, 57, 100])
def test_realised_false_alarm_rate_keeps_the_level(count, kind):
    pool = score_pool(kind, count)
    for rate in (0.05, 0.1, 0.25, 0.5, 0.9):
        alarms = sum(new > conformal_threshold(normal, rate) for normal, new in leave_one_out(pool))
        assert Fraction(int(alarms), count) <= exact(rate)
        if kind == "distinct":  # and no further below it than it must
            assert alarms == int(exact(rate) * count)


def test_random_splits_keep_the_level_on_average():
    rng = np.random.default_rng(0)
    realised = []
    for _ in range(400):
        scores = rng.standard_t(df=3, size=49 + 200)
        realised.append((scores[49:] > conformal_threshold(scores[:49], 0.1)).mean())
    assert 0.09 < np.mean(realised) < 0.11


@pytest.mark.parametrize(
    ("rate", "needed", "total"), [(0.5, 1, 2), (0.1, 9, 10), (0.05, 19, 21), (0.01, 99, 109), (0.03, 33, 36)]
)
def test_unsupported_rate_is_refused_with_the_number_needed_and_the_smallest_rate(rate, needed, total):
    scores = np.arange(needed, dtype=float)
    assert conformal_threshold(scores, rate) == needed - 1
    assert fitted(scores).supported_rate(rate) == rate
    assert images_needed(rate) == total
    if needed == 1:
        return
    with pytest.raises(ValueError, match=f"{rate:g} needs {needed} .*there are {needed - 1}: calibrate on {total} ") as error:
        conformal_threshold(scores[:-1], rate)
    with pytest.raises(ValueError, match="needs"):
        fitted(scores[:-1]).supported_rate(rate)
    smallest = float(str(error.value).rsplit(" ", 1)[1])
    assert smallest == pytest.approx(1 / needed, abs=1e-4)
    check_supported(needed - 1, smallest)


@pytest.mark.parametrize("rate", [0.5, 0.3, 0.1, 0.05, 0.02, 0.01])
def test_the_number_of_images_needed_is_the_smallest_that_leaves_enough_for_thresholds(rate):
    needed = images_needed(rate)
    left = [len(split_for_statistics(np.arange(count), seed=0)[1]) for count in range(2, needed + 1)]
    check_supported(left[-1], rate)
    for fewer in left[:-1]:
        with pytest.raises(ValueError, match="needs"):
            check_supported(fewer, rate)


@pytest.mark.parametrize(("count", "rate"), [(1, 1 / 2), (4, 1 / 5), (18, 1 / 19)])
def test_default_rate_is_the_smallest_supported_one_where_5_percent_is_not_and_says_so(count, rate):
    calibration = fitted(np.arange(count, dtype=float))
    with pytest.warns(UserWarning, match=f"{count} normal images .* {rate:.3g} at best.*0.05, which needs 21"):
        assert calibration.supported_rate() == rate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert calibration.image_threshold(calibration.supported_rate()) == count - 1


@pytest.mark.parametrize("count", [19, 20, 500])
def test_default_rate_is_5_percent_where_supported(count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted(np.arange(count, dtype=float)).supported_rate() == 0.05


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5, float("nan")])
def test_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match="false_alarm_rate must lie between 0 and 1"):
        conformal_threshold(np.arange(10.0), rate)


def test_no_scores_are_refused():
    with pytest.raises(ValueError, match="calibrate"):
        conformal_threshold(np.array([]), 0.05)
    with pytest.raises(ValueError, match="calibrate"):
        Calibration().image_threshold(0.05)
    with pytest.raises(ValueError, match="calibrate"):
        Calibration().supported_rate()


def test_order_of_the_calibration_scores_does_not_matter():
    scores = score_pool("distinct", 30)
    shuffled = np.random.default_rng(1).permutation(scores)
    assert conformal_threshold(scores, 0.2) == conformal_threshold(shuffled, 0.2)
    assert fitted(scores).image_threshold(0.2) == fitted(shuffled).image_threshold(0.2)


# p-values


@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal"])
@pytest.mark.parametrize("count", [2, 20, 41])
def test_p_values_of_normal_parts_are_valid_at_every_level(count, kind):
    pool = score_pool(kind, count).astype(np.float32)
    p = np.array([fitted(normal).p_values(np.array([new]))[0] for normal, new in leave_one_out(pool)])
    for level in np.append(p, [0.01, 0.05, 0.5, 1.0]):
        assert (p <= level).mean() <= level + 1e-12
    if kind == "distinct":
        np.testing.assert_allclose(np.sort(p), np.arange(1, count + 1) / count)


def test_p_values_follow_the_formula():
    normal = score_pool("ties", 25).astype(np.float32)
    scores = np.array([-1.0, 0.0, 0.5, 2.0, 4.0, 9.0], dtype=np.float32)
    expected = [(1 + sum(bool(n >= s) for n in normal)) / 26 for s in scores]
    np.testing.assert_allclose(fitted(normal).p_values(scores), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["distinct", "ties"])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25, 0.5])
def test_label_and_p_value_agree(rate, kind):
    calibration = fitted(score_pool(kind, 39))
    scores = np.concatenate([calibration.calibration_scores.numpy(), np.linspace(-4, 6, 101, dtype=np.float32)])
    np.testing.assert_array_equal(scores > calibration.image_threshold(rate), calibration.p_values(scores) <= rate + 1e-12)


# Fitting


def random_partials(calibration: Calibration, count: int = 6) -> np.ndarray:
    """Raw maps `(count, partials, 5, 4)` with another mean and spread for every partial."""
    rng = np.random.default_rng(0)
    number = len(calibration.term_map_names)
    spread = np.arange(1, number + 1)[:, None, None]
    return (rng.gamma(2, size=(count, number, 5, 4)) * spread + 10 * spread).astype(np.float32)


def naive_map(calibration: Calibration, image: np.ndarray, mean: dict, std: dict) -> np.ndarray:
    """Eq. 11 spelled out for one image `(partials, H, W)`."""
    config, names = calibration.config, calibration.term_map_names
    result = 0
    for term, weight in config.weights.items():
        partials = [name for name in names if name.split("@")[0] == term]
        for name in partials:
            result = result + weight / len(partials) * (image[names.index(name)] - mean[name]) / std[name]
    return result


@pytest.mark.parametrize("standardized_terms", [("kl", "rgb", "feature", "mahalanobis"), ("kl",), ()])
def test_fit_matches_the_formulas_written_out(standardized_terms):
    calibration = Calibration(
        timesteps=(20, 401),
        weights={"mahalanobis": 0.5, "kl": 0.3, "rgb": 0.2},
        standardized_terms=standardized_terms,
        top_k=3,
    )
    partials = random_partials(calibration, count=23)
    calibration.fit(partials)
    of_statistics, of_thresholds = split_for_statistics(np.arange(23), seed=0)
    assert len(of_statistics) == 2
    if not standardized_terms:
        of_thresholds = np.arange(23)
    mean, std = {}, {}
    for i, name in enumerate(calibration.term_map_names):
        chosen = name.split("@")[0] in standardized_terms
        mean[name] = partials[of_statistics, i].astype(float).mean() if chosen else 0.0
        std[name] = partials[of_statistics, i].astype(float).std() if chosen else 1.0
        standardized = calibration.standardize(name, torch.from_numpy(partials[:, i])).numpy()
        np.testing.assert_allclose(standardized, (partials[:, i] - mean[name]) / std[name], rtol=1e-4, atol=1e-5)
    maps = [naive_map(calibration, image, mean, std) for image in partials[of_thresholds]]
    scores = sorted(np.sort(m, axis=None)[-3:].mean() for m in maps)
    np.testing.assert_allclose(calibration.calibration_scores, scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(calibration.calibration_maxima, sorted(m.max() for m in maps), rtol=1e-4, atol=1e-5)
    assert calibration.is_fitted and calibration.config.num_calibration_images == len(of_thresholds)
    assert calibration.image_threshold(0.2) < calibration.pixel_threshold(0.2)


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (4, 1), (19, 1), (20, 2), (114, 11)])
def test_one_image_in_ten_gives_the_statistics_and_none_is_lost(count, expected):
    images = np.arange(count) + 1000
    of_statistics, of_thresholds = split_for_statistics(images, seed=3)
    assert len(of_statistics) == expected
    assert sorted([*of_statistics, *of_thresholds]) == images.tolist()
    if count > 4:
        assert not np.array_equal(of_statistics, split_for_statistics(images, seed=4)[0])


def test_statistics_and_thresholds_do_not_share_images():
    """Else the scores behind the thresholds would not be exchangeable with those of new images."""
    calibration = Calibration()
    partials = random_partials(calibration, count=12)
    of_statistics, of_thresholds = split_for_statistics(np.arange(12), seed=0)
    calibration.fit(partials)
    mean, std = calibration.term_mean.clone(), calibration.term_std.clone()
    partials[of_thresholds] *= 3
    calibration.fit(partials)
    assert torch.equal(mean, calibration.term_mean) and torch.equal(std, calibration.term_std)


def test_scores_of_a_calibrated_recipe_are_exchangeable_with_new_ones():
    """Terms with outliers of their own: with statistics of the scored images themselves 0.33 in place of 0.2."""
    rng = np.random.default_rng(0)
    calibration = Calibration(timesteps=(20,), weights=dict.fromkeys(TERMS, 0.2))
    draws, alarms = 300, 0
    for _ in range(draws):
        partials = rng.standard_t(df=1, size=(5, len(TERMS), 1, 2)).astype(np.float32)
        calibration.fit(partials[:4])
        raw = zip(calibration.term_map_names, torch.from_numpy(partials[4]), strict=True)
        score = calibration.combine({name: calibration.standardize(name, partial[None]) for name, partial in raw}).max()
        level = 1 / (calibration.config.num_calibration_images + 1)
        alarms += score.item() > calibration.image_threshold(level)
    assert alarms / draws == pytest.approx(level, abs=0.05)  # two standard errors


def test_standardisation_per_image_ignores_the_normal_statistics():
    calibration = Calibration(per_image=True, standardized_terms=("kl",))
    calibration.fit(random_partials(calibration))
    raw = torch.rand(2, 5, 4)
    assert torch.equal(calibration.standardize("kl@20", raw), standardize_per_image(raw))
    assert torch.equal(calibration.standardize("mahalanobis", raw), raw)


def test_combine_needs_the_weighted_terms_only():
    calibration = Calibration(timesteps=(20, 201), weights={"kl": 0.5, "mahalanobis": 0.25, "rgb": 0.0})
    partials = {"kl@20": torch.rand(2, 3, 4), "kl@201": torch.rand(2, 3, 4), "mahalanobis": torch.rand(2, 3, 4)}
    expected = 0.25 * partials["kl@20"] + 0.25 * partials["kl@201"] + 0.25 * partials["mahalanobis"]
    torch.testing.assert_close(calibration.combine(partials), expected)


def test_partial_without_spread_does_not_divide_by_zero():
    calibration = Calibration()
    partials = random_partials(calibration)
    partials[:, 0] = 7
    calibration.fit(partials)
    assert (calibration.standardize("kl@20", torch.full((1, 5, 4), 7.0)) == 0).all()
    assert calibration.calibration_scores.isfinite().all()


def test_statistics_survive_a_large_mean_and_a_small_spread():
    calibration = Calibration()
    partials = random_partials(calibration)
    partials[:, 0] = 1000 + 0.01 * partials[:, 0]
    calibration.fit(partials)
    index = calibration.term_map_names.index("kl@20")
    of_statistics, _ = split_for_statistics(np.arange(len(partials)), seed=0)
    np.testing.assert_allclose(calibration.term_std[index], partials[of_statistics, 0].astype(float).std(), rtol=1e-5)


@pytest.mark.parametrize("image", range(6))
def test_non_finite_maps_are_refused(image):
    calibration = Calibration()
    partials = random_partials(calibration)
    partials[image, -1, 1, 1] = np.nan
    with pytest.raises(ValueError, match="finite|NaN"):
        calibration.fit(partials)


@pytest.mark.parametrize(("recipe", "needed"), [({}, 2), ({"standardized_terms": ()}, 1), ({"per_image": True}, 1)])
def test_fitting_on_too_few_images_is_refused(recipe, needed):
    calibration = Calibration(**recipe)
    with pytest.raises(ValueError, match=f"at least {needed} normal images, got {needed - 1}"):
        calibration.fit(random_partials(calibration, count=needed - 1))
    calibration.fit(random_partials(calibration, count=needed))
    assert calibration.config.num_calibration_images == 1


# Recipe, saving and loading


@pytest.mark.parametrize("recipe", [{"weights": {"kl": 1.0, "ssim": 1.0}}, {"standardized_terms": ("kl", "ssim")}])
def test_unknown_terms_are_refused(recipe):
    with pytest.raises(ValueError, match=r"\['ssim'\].*kl, rgb, feature, residual, mahalanobis"):
        Calibration(**recipe)


@pytest.mark.parametrize("recipe", [{"weights": {}}, {"timesteps": ()}])
def test_recipe_without_terms_or_timesteps_is_refused(recipe):
    with pytest.raises(ValueError, match="at least one timestep and one weighted term"):
        Calibration(**recipe)


@pytest.mark.parametrize("recipe", [{"top_k": 0}, {"timesteps": (20, 20)}, {"smoothing_sigma": -1.0}])
def test_impossible_recipe_is_refused(recipe):
    with pytest.raises(ValueError, match=next(iter(recipe))):
        Calibration(**recipe)


def test_term_map_names_follow_the_timesteps():
    names = ["kl@401", "rgb@401", "feature@401", "kl@20", "rgb@20", "feature@20", "residual", "mahalanobis"]
    assert Calibration(timesteps=(401, 20)).term_map_names == names


def test_default_timesteps_are_the_papers_in_original_units():
    """Steps 5, 50 and 100 of a chain of 1000 respaced to 250."""
    respaced = np.linspace(0, 999, 250).round().astype(int)
    assert Calibration().config.timesteps == tuple(respaced[[5, 50, 100]].tolist())


def test_saved_calibration_loads_bit_equal(tmp_path):
    recipe = {
        "timesteps": (401, 20),
        "num_inference_steps": None,
        "weights": {"rgb": 0.7, "kl": 0.2, "mahalanobis": 0.1},
        "standardized_terms": ("kl", "rgb"),
        "smoothing_sigma": 2.5,
        "top_k": 4,
        "seed": 9,
    }
    calibration = Calibration(**recipe)
    partials = random_partials(calibration)
    calibration.fit(partials)
    calibration.save_pretrained(tmp_path)
    loaded = Calibration.from_pretrained(tmp_path)
    assert loaded.is_fitted and loaded.config.num_calibration_images == len(loaded.calibration_scores) == 5
    for name, value in recipe.items():
        kept = loaded.config[name]
        assert (tuple(kept) if isinstance(kept, list) else kept) == value
    state = calibration.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.term_map_names == calibration.term_map_names
    maps = {name: torch.from_numpy(partials[:, i]) for i, name in enumerate(loaded.term_map_names)}
    assert torch.equal(loaded.combine(maps), calibration.combine(maps))
    assert loaded.image_threshold(0.2) == calibration.image_threshold(0.2)


def test_number_of_normals_is_saved_even_after_fitting_twice(tmp_path):
    calibration = fitted(np.arange(9.0))
    partials = np.zeros((4, len(calibration.term_map_names), 1, 1), dtype=np.float32)
    calibration.fit(partials)
    calibration.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_calibration_images"] == 4
    assert len(Calibration.from_pretrained(tmp_path).calibration_maxima) == 4


def test_unfitted_calibration_survives_saving(tmp_path):
    Calibration().save_pretrained(tmp_path)
    assert not Calibration.from_pretrained(tmp_path).is_fitted
