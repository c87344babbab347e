"""ScoreConfig: what settings say, and which are refused."""

import pytest
from bayes_reference import RESPACED
from diffad import Calibration
from diffad.scoring.config import TERMS, ScoreConfig, check_fits_model, term_of


@pytest.mark.parametrize("kind", [ScoreConfig, Calibration])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"kl": 1.0, "ssim": 1.0}}, r"\['ssim'\].*kl, rgb, feature, residual, mahalanobis"),
        ({"standardized_terms": ("kl", "ssim")}, r"\['ssim'\].*kl, rgb, feature, residual, mahalanobis"),
        ({"weights": {}}, "at least one timestep and one weighted term"),
        ({"timesteps": ()}, "at least one timestep and one weighted term"),
        ({"top_k": 0}, "top_k"),
        ({"timesteps": (20, 20)}, "timesteps"),
        ({"smoothing_sigma": -1.0}, "smoothing_sigma"),
        ({"tile_overlap": 1.0}, "tile_overlap"),
        ({"tile_overlap": -0.1}, "tile_overlap"),
    ],
)
def test_impossible_settings_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_term_map_names_follow_the_timesteps():
    names = ["kl@401", "rgb@401", "feature@401", "kl@20", "rgb@20", "feature@20", "residual", "mahalanobis"]
    assert ScoreConfig(timesteps=(401, 20)).term_map_names == names
    assert {term_of(name) for name in names} == set(TERMS)


def test_a_weight_is_divided_among_the_timesteps():
    config = ScoreConfig(timesteps=(20, 201), weights={"kl": 0.5, "mahalanobis": 0.25, "rgb": 0.0})
    assert config.shares == {"kl@20": 0.25, "kl@201": 0.25, "mahalanobis": 0.25}
    assert sum(ScoreConfig().shares.values()) == pytest.approx(1)


def test_default_timesteps_are_the_papers_in_original_units():
    """Steps 5, 50 and 100 of a chain of 1000 respaced to 250."""
    config = ScoreConfig()
    assert config.timesteps == tuple(RESPACED[i] for i in (5, 50, 100)) and config.num_inference_steps == len(RESPACED)


def test_calibration_has_the_same_settings_and_defaults():
    assert Calibration().score_config == ScoreConfig()
    settings = {"timesteps": (401, 20), "num_inference_steps": None, "weights": {"kl": 1.0}, "top_k": 4, "short_side": 512}
    assert Calibration(**settings).score_config == ScoreConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "grid", "message"),
    [
        ({"top_k": 1025}, None, "top_k must be at most 1024, .* got 1025"),
        ({"short_side": 16}, None, "at least the model's resolution 32, got 16"),
        ({"short_side": 64}, (4, 4), "shared_gaussian"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings, grid, message):
    with pytest.raises(ValueError, match=message):
        check_fits_model(ScoreConfig(**settings), (32, 32), grid)
    check_fits_model(ScoreConfig(top_k=1024), (32, 32), (4, 4))
    check_fits_model(ScoreConfig(short_side=32), (32, 32), None)
