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
    DEFAULT,
    MARGIN,
    MapChoice,
    candidates,
    choose_map,
    described,
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
    without, with_neighbors = candidates(scales), candidates(SCALE_TERMS)
    for tried in (without, with_neighbors):
        assert tried[0] == DEFAULT and len(set(tried)) == len({described(terms) for terms in tried}) == len(tried)
    optional = {"neighbors", "feature_residual"}
    assert all(optional.isdisjoint(terms) for terms in without)
    assert [terms for terms in with_neighbors if optional.isdisjoint(terms)] == without
    assert ("neighbors",) in with_neighbors


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
        self.noise = torch.Generator().manual_seed(0)

    def raw_term_maps(self, pixels, category, terms, detail):
        differs = (pixels - pixels.flatten(2).median(dim=2).values[..., None, None]).abs().amax(dim=1) > 0.05
        return {term: self.planted(differs, term) for term in terms}

    def planted(self, differs: torch.Tensor, term: str) -> torch.Tensor:
        return torch.randn(differs.shape, generator=self.noise) + self.strengths.get(term, 0.0) * differs

    def choose(self, seed: int = 0, roi: torch.Tensor | None = None) -> MapChoice:
        reader = InputReader(self, None, torch.device("cpu"))
        images = [np.full((2 * SIZE, 2 * SIZE, 3), level, np.uint8) for level in (70, 110, 150, 190)]
        return choose_map(self, reader, images, None, seed, roi)


@pytest.mark.parametrize(
    ("strengths", "terms"),
    [({"detail": 3}, ("detail",)), ({"neighbors": 3}, ("neighbors",)), ({"rgb": 2, "detail": 2}, ("rgb", "detail"))],
)
def test_what_sees_the_defects_is_chosen(strengths, terms):
    choice = PlantedScorer(**strengths).choose()
    assert choice.chosen == terms
    assert choice.margin > max(MARGIN, 2 * choice.standard_error) > 0
    worths = choice.average_precision
    assert list(worths.values()) == sorted(worths.values(), reverse=True)
    assert list(worths) == sorted(map(described, candidates(SCALE_TERMS)), key=lambda name: -worths[name])
    assert worths[choice.name] - worths[described(DEFAULT)] == pytest.approx(choice.margin)


@pytest.mark.parametrize(
    ("strengths", "name"),
    [
        ({"feature_residual": 3}, "feature_residual"),
        ({"pixel_residual": 3}, "pixel_residual"),
        ({"feature_residual": 2, "pixel_residual": 2}, "feature_residual + pixel_residual"),
    ],
)
def test_the_map_of_a_fast_profile_is_chosen_too(strengths, name):
    choice = PlantedScorer(**strengths).choose()
    assert choice.of_profiles["fast"].name == name and choice.to_dict()["profiles"]["fast"]["chosen"] == name
    assert choice.terms_of_profiles == {"fast": choice.of_profiles["fast"].chosen}


def test_default_stays_where_nothing_is_better():
    for strengths in ({}, dict.fromkeys(("rgb", "residual", "detail"), 3)):
        choice = PlantedScorer(**strengths).choose()
        assert choice.chosen == DEFAULT and choice.margin == choice.standard_error == 0
        assert choice.of_profiles["fast"].chosen == tuple(PROFILES["fast"]["weights"])


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
    assert choice.chosen == ("detail",) and 0 < choice.defects[0] < 30 and np.isfinite(choice.standard_error)
    for maps, masks in counted:
        left = (slice(None), slice(None), slice(0, SIZE))
        assert masks[4:].any(axis=(1, 2)).all() and not masks[left].any() and not maps[left].any()


@pytest.mark.filterwarnings("error")
def test_default_stays_where_no_defect_is_in_the_region_of_interest():
    roi = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    roi[0, 0] = True
    choice = PlantedScorer(detail=2).choose(roi=roi)
    assert choice.defects == (0, 4) and choice.chosen == DEFAULT and choice.pictures == []


# A trained model


@pytest.fixture(scope="module")
def arguments(trained, tmp_path_factory):
    """What the map of a trained model is chosen with: all scales."""

    class Stop(Exception):
        pass

    def stop(*args):
        raise Stop(args)

    folder = tmp_path_factory.mktemp("refit")
    config = tiny_config(trained.config.data, folder / "model", **COMPLETE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop) as stopped:
        patch.setattr(fitting, "choose_map", stop)
        refit(trained.folder, config)
    return stopped.value.args[0]


def test_same_images_and_seed_choose_the_same(arguments):
    scorer, reader, *_ = arguments
    first, again = (choose_map(scorer, reader, smooth_images(3, seed=5), None, 1) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    for (image, mask), (image_again, mask_again) in zip(first.pictures, again.pictures, strict=True):
        np.testing.assert_array_equal(image, image_again)
        np.testing.assert_array_equal(mask, mask_again)


@torch.no_grad()
def test_maps_are_of_all_terms_of_candidates(arguments):
    scorer, reader, *_ = arguments
    maps = map_choice._maps_in_decades(scorer, reader, smooth_images(5, seed=6), None, 3)
    assert set(maps) == {"kl", "rgb", "feature", "residual", "detail", "neighbors", "feature_residual", "pixel_residual"}
    assert all(values.shape == (5, *map_choice.MAP_SIZE) for values in maps.values())
