"""Choice of the anomaly map: the rule on planted maps, its pieces against scikit-learn, and a trained model's own maps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffad.scoring.config import SCALE_TERMS, TERMS
from diffad.scoring.inputs import InputReader
from diffad.scoring.profiles import PROFILES
from diffad_training import fitting, map_choice
from diffad_training.likely_defects import KINDS
from diffad_training.map_choice import (
    CONDITIONED,
    DEFAULT,
    MARGIN,
    Candidate,
    MapChoice,
    candidates,
    choose_map,
)
from diffad_training.refit import refit
from sklearn.metrics import average_precision_score
from tiny_pipeline import SIZE, smooth_images
from tiny_training import COMPLETE, tiny_config


@pytest.fixture(autouse=True)
def few_defects_resamples_and_pixels(monkeypatch):
    """They choose the same."""
    monkeypatch.setattr(map_choice, "DEFECTS", 30)
    monkeypatch.setattr(map_choice, "RESAMPLES", 50)
    monkeypatch.setattr(map_choice, "MAP_SIZE", (2 * SIZE, 2 * SIZE))


# The candidates


def test_default_comes_first_and_then_every_other_once():
    scales = ("coarse", "detail", "coarse_detail")
    without, with_neighbors = candidates(scales, True), candidates(SCALE_TERMS, True)
    for tried in (without, with_neighbors):
        assert tried[0] == Candidate(DEFAULT, "own") and len(set(tried)) == len(tried)
        assert len({candidate.name for candidate in tried}) == len(tried)
        # Those of the present conditioning are all nearer to the default than those of the other.
        assert [candidate.conditioning for candidate in tried] == sorted(candidate.conditioning for candidate in tried)
        assert all(set(c.terms) & set(CONDITIONED) for c in tried if c.conditioning == "whitened")
    optional = {"neighbors", "feature_residual"}
    assert all(optional.isdisjoint(candidate.terms) for candidate in without)
    assert [candidate for candidate in with_neighbors if optional.isdisjoint(candidate.terms)] == without
    assert Candidate(("neighbors",), "own") in with_neighbors and Candidate(("neighbors",), "whitened") not in with_neighbors
    # Without the other conditioning, as with few training images, only terms are chosen.
    few = candidates(SCALE_TERMS, False)
    assert few == [candidate for candidate in with_neighbors if candidate.conditioning == "own"]


def test_only_gaussians_have_maps_of_another_conditioning():
    whitened = Candidate(("rgb", "residual", "detail"), "whitened")
    assert [whitened.map_name(term) for term in whitened.terms] == ["rgb", "residual, whitened", "detail, whitened"]
    assert [Candidate(DEFAULT, "own").map_name(term) for term in DEFAULT] == [*DEFAULT]
    assert whitened.name == "rgb + residual + detail, whitened"


# Average precision and resamples


def test_average_precision_is_that_of_the_pixels_of_the_images_taken():
    rng = np.random.default_rng(0)
    masks = rng.random((8, 20, 20)) < 0.1
    masks[:3] = False
    maps = (rng.standard_normal(masks.shape) + masks).astype(np.float32)
    chosen = np.array([0, 1, 2, 4, 7])
    weights = np.array([[1, 1, 1, 1, 1], [0, 3, 0, 1, 1], [1, 1, 1, 0, 2]])
    actual = map_choice._average_precision(maps, masks, chosen, weights)
    for row, value in zip(weights, actual, strict=True):
        taken = np.repeat(chosen, row)
        # Thresholds are quantiles of the scores.
        assert value == pytest.approx(average_precision_score(masks[taken].ravel(), maps[taken].ravel()), abs=2e-3)


def test_resamples_draw_good_and_defective_images_apart():
    kinds = np.array(["", "", "", *KINDS, KINDS[0], KINDS[0]])
    drawn = map_choice._resamples(kinds, np.random.default_rng(0))
    assert [list(chosen) for chosen, _ in drawn] == [[0, 1, 2, 3, 6, 7], [0, 1, 2, 4], [0, 1, 2, 5]]
    for _, weights in drawn:
        assert weights.shape[0] == 1 + map_choice.RESAMPLES and (weights[0] == 1).all()
        assert (weights[:, :3].sum(axis=1) == 3).all() and (weights[:, 3:].sum(axis=1) == weights.shape[1] - 3).all()
    # Drawn with replacement: each image once on average, with the variance of n draws, (n - 1) / n.
    weights = drawn[0][1][1:]
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.25)
    np.testing.assert_allclose(weights.var(axis=0), 2 / 3, atol=0.3)
    # A kind that could be put nowhere is left out.
    assert len(map_choice._resamples(np.array(["", KINDS[1]]), np.random.default_rng(0))) == 1


def gain_of(mean: float, standard_error: float) -> np.ndarray:
    return np.concatenate([[mean], mean + standard_error * np.tile([-1.0, 1.0], map_choice.RESAMPLES // 2)])


@pytest.mark.parametrize(
    ("mean", "standard_error", "is_better"),
    [
        (MARGIN + 0.001, 0.0, True),
        (MARGIN - 0.001, 0.0, False),
        (0.05, 0.024, True),
        (0.05, 0.026, False),
        (-0.05, 0.001, False),
    ],
)
def test_better_is_more_than_the_margin_and_two_standard_errors(mean, standard_error, is_better):
    assert map_choice._is_better(gain_of(mean, standard_error)) == is_better


# The rule, on maps that are made up: plain good images, on which a defect is what differs from the median


class PlantedScorer:
    """Maps of noise, with the truth in some: by name of the term, how strongly; the same noise in all of one strength."""

    config = SimpleNamespace(scales=SCALE_TERMS, all_terms=(*TERMS, *SCALE_TERMS), short_side=None)
    image_size, detail_size = (SIZE, SIZE), None

    def __init__(self, **strengths: float):
        self.strengths = strengths
        self.residual_gaussian = torch.nn.Identity()
        self.multiscale = SimpleNamespace(detail=SimpleNamespace(gaussian=torch.nn.Identity()))
        self.feature_denoiser = SimpleNamespace(gaussian=torch.nn.Identity())
        self.noise = torch.Generator().manual_seed(0)

    def raw_term_maps(self, pixels, category, terms, detail):
        differs = (pixels - pixels.flatten(2).median(dim=2).values[..., None, None]).abs().amax(dim=1) > 0.05
        for asked in (self.residual_gaussian, self.multiscale.detail.gaussian, self.feature_denoiser.gaussian):
            asked(differs)
        return {term: self.planted(differs, term) for term in terms}

    def planted(self, differs: torch.Tensor, term: str) -> torch.Tensor:
        return torch.randn(differs.shape, generator=self.noise) + self.strengths.get(term, 0.0) * differs

    def smoothed_distance_map(self, squared_distance: torch.Tensor, size) -> torch.Tensor:
        return squared_distance

    def choose(self, seed: int = 0, roi: torch.Tensor | None = None) -> MapChoice:
        whitened = {term: lambda differs, term=term: self.planted(differs, f"{term}_whitened") for term in CONDITIONED}
        reader = InputReader(self, None, torch.device("cpu"))
        images = [np.full((2 * SIZE, 2 * SIZE, 3), level, np.uint8) for level in (70, 110, 150, 190)]
        return choose_map(self, whitened, reader, images, None, seed, roi)


@pytest.mark.parametrize(
    ("strengths", "terms", "conditioning"),
    [
        ({"detail": 3}, ("detail",), "own"),
        ({"neighbors": 3}, ("neighbors",), "own"),
        ({"detail_whitened": 3}, ("detail",), "whitened"),
        ({"rgb": 2, "detail": 2}, ("rgb", "detail"), "own"),
    ],
)
def test_what_sees_the_defects_is_chosen(strengths, terms, conditioning):
    choice = PlantedScorer(**strengths).choose()
    assert choice.chosen == Candidate(terms, conditioning)
    assert choice.margin > max(MARGIN, 2 * choice.standard_error) > 0
    worths = list(choice.average_precision.values())
    assert worths == sorted(worths, reverse=True) and len(worths) == len(candidates(SCALE_TERMS, True))
    assert choice.average_precision[choice.chosen.name] - choice.average_precision[
        candidates((), True)[0].name
    ] == pytest.approx(choice.margin)


@pytest.mark.parametrize(
    ("strengths", "name"),
    [
        ({"feature_residual": 3}, "feature_residual"),
        ({"detail_whitened": 3, "feature_residual_whitened": 3}, "feature_residual, whitened"),
        ({"pixel_residual": 3}, "pixel_residual"),
        ({"feature_residual": 2, "pixel_residual": 2}, "feature_residual + pixel_residual"),
    ],
)
def test_the_map_of_a_fast_profile_is_chosen_with_the_conditioning_of_the_own(strengths, name):
    choice = PlantedScorer(**strengths).choose()
    assert choice.of_profiles["fast"].chosen.name == name and choice.to_dict()["profiles"]["fast"]["chosen"] == name
    assert choice.terms_of_profiles == {"fast": choice.of_profiles["fast"].chosen.terms}


def test_default_stays_where_nothing_is_better():
    for strengths in ({}, dict.fromkeys(("rgb", "residual", "detail", "residual_whitened", "detail_whitened"), 3)):
        choice = PlantedScorer(**strengths).choose()
        assert choice.chosen == Candidate(DEFAULT, "own") and choice.margin == choice.standard_error == 0
        assert choice.of_profiles["fast"].chosen.terms == tuple(PROFILES["fast"]["weights"])


def test_defects_are_put_on_as_many_images_and_shown():
    choice = PlantedScorer(detail=3).choose()
    assert choice.defects == (30, 4) and choice.to_dict()["synthetic_defects"] == 30
    assert choice.to_dict()["chosen"] == "detail" and choice.to_dict()["good_images"] == 4
    for image, mask in choice.pictures:
        assert image.shape == (2 * SIZE, 2 * SIZE, 3) and mask.any()


@pytest.mark.filterwarnings("error")
def test_only_defects_in_the_region_of_interest_count(monkeypatch):
    counted = []
    original = map_choice._average_precision
    monkeypatch.setattr(map_choice, "_average_precision", lambda *args: counted.append(args[:2]) or original(*args))
    roi = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    roi[:, SIZE // 2 :] = True
    choice = PlantedScorer(detail=2).choose(roi=roi)
    assert choice.chosen.terms == ("detail",) and 0 < choice.defects[0] < 30 and np.isfinite(choice.standard_error)
    for maps, masks in counted:
        left = (slice(None), slice(None), slice(0, SIZE))
        assert masks[4:].any(axis=(1, 2)).all() and not masks[left].any() and not maps[left].any()


@pytest.mark.filterwarnings("error")
def test_default_stays_where_no_defect_is_in_the_region_of_interest():
    roi = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    roi[0, 0] = True
    choice = PlantedScorer(detail=2).choose(roi=roi)
    assert choice.defects == (0, 4) and choice.chosen == Candidate(DEFAULT, "own") and choice.pictures == []


# A trained model


@pytest.fixture(scope="module")
def arguments(trained, tmp_path_factory):
    """What the map of a trained model is chosen with: all scales, and Gaussians of both conditionings."""

    class Stop(Exception):
        pass

    def stop(*args):
        raise Stop(args)

    folder = tmp_path_factory.mktemp("refit")
    config = tiny_config(trained.config.data, folder / "model", **COMPLETE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop) as stopped:
        patch.setattr(fitting, "choose_map", stop)
        patch.setattr(fitting, "FEWEST_TRAINING_IMAGES", 10)  # as many as there are
        refit(trained.folder, config)
    return stopped.value.args[0]


def test_same_images_and_seed_choose_the_same(arguments):
    scorer, whitened, reader, *_ = arguments
    first, again = (choose_map(scorer, whitened, reader, smooth_images(3, seed=5), None, 1) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    for (image, mask), (image_again, mask_again) in zip(first.pictures, again.pictures, strict=True):
        np.testing.assert_array_equal(image, image_again)
        np.testing.assert_array_equal(mask, mask_again)


@torch.no_grad()
def test_maps_of_both_conditionings_are_those_of_a_scorer_with_these_gaussians(arguments, monkeypatch):
    scorer, whitened, reader, *_ = arguments
    images = smooth_images(5, seed=6)
    actual = map_choice._maps_in_decades(scorer, whitened, reader, images, None, 3)
    own = scorer.residual_gaussian, scorer.multiscale.detail.gaussian, scorer.feature_denoiser.gaussian
    monkeypatch.setattr(scorer, "residual_gaussian", whitened["residual"])
    monkeypatch.setattr(scorer.multiscale.detail, "gaussian", whitened["detail"])
    monkeypatch.setattr(scorer.feature_denoiser, "gaussian", whitened["feature_residual"])
    others = dict(zip(CONDITIONED, own, strict=True))
    exchanged = map_choice._maps_in_decades(scorer, others, reader, images, None, 3)
    terms = {"kl", "rgb", "feature", "residual", "detail", "neighbors", "feature_residual", "pixel_residual"}
    assert set(actual) == terms | {f"{term}, whitened" for term in CONDITIONED}
    for term in CONDITIONED:
        np.testing.assert_array_equal(actual[f"{term}, whitened"], exchanged[term])
        np.testing.assert_array_equal(actual[term], exchanged[f"{term}, whitened"])
        assert not np.array_equal(actual[term], actual[f"{term}, whitened"])
