"""Scores by name: their settings, and the paper's from the UNet's predictions on, written out."""

import numpy as np
import pytest
import torch
from diffad.scoring.config import DETAIL_TERMS, ScoreConfig
from diffad.scoring.presets import DEFAULT, SCORES, score_settings
from tiny_pipeline import smooth_images, tiny_pipeline

ALPHA, TOP_K = 0.5, 64


def test_papers_score_is_equation_11_with_its_alpha():
    config = ScoreConfig(**score_settings("paper"))
    assert config.weights == {"kl": 0.5, "feature": 0.5}
    assert config.standardized_terms == ("kl",) and config.per_image and not config.needs_statistics
    assert (config.fusion, config.verdict, config.scales) == ("sum", {}, ())
    assert (config.smoothing_sigma, config.top_k) == (0.0, 64)


def test_settings_take_the_place_of_the_defaults():
    assert score_settings("default") == score_settings({}) == DEFAULT
    assert score_settings({"top_k": 3, "weights": {"kl": 1.0}}) == {**DEFAULT, "top_k": 3, "weights": {"kl": 1.0}}
    assert score_settings("default") is not DEFAULT


@pytest.mark.parametrize("name", ["papers", "Default", ""])
def test_unknown_score_is_refused(name):
    with pytest.raises(ValueError, match=rf"unknown score '{name}'; there are default, paper"):
        score_settings(name)
    with pytest.raises(ValueError, match="unknown score"):
        tiny_pipeline().calibrate(smooth_images(3, seed=4), score=name)


def test_images_in_tiles_are_not_enlarged():
    tiled, whole = (ScoreConfig(**score_settings("default", short_side)) for short_side in (512, None))
    assert set(whole.terms) - set(tiled.terms) == {"detail", "coarse_detail"}
    assert tiled.weights == {"rgb": 1, "residual": 1} and set(tiled.verdict) == {"residual", "coarse"}
    assert tiled.scales == ("coarse",) and not set(tiled.all_terms) & set(DETAIL_TERMS)
    # The settings that others are made of are as they were.
    assert set(DEFAULT["weights"]) == {"rgb", "residual", "detail"} and SCORES["default"] is DEFAULT
    assert score_settings("paper", 512) == score_settings("paper")


@torch.no_grad()
def papers_score(pipe, image) -> tuple[float, np.ndarray]:
    """Eq. 11 of one image, in float64 from the UNet's outputs on; maps at the model's resolution."""
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1)[None].copy()).float() / 127.5 - 1
    scorer, features = pipe.scorer, pipe.feature_extractor(pixels).double().numpy()[0]
    side, ensemble = pixels.shape[-1], 0.0
    timesteps = (20, 201, 401)
    for noise, t in zip(scorer.noise, timesteps, strict=True):
        timestep = torch.tensor([t])
        prediction = scorer.denoiser(scorer.denoiser.add_noise(pixels, noise, timestep), timestep)
        kl = scorer.denoiser.kl_divergence(pixels, prediction, timestep).double().numpy()[0].mean(axis=0)
        kl = (kl - kl.mean()) / kl.std(ddof=1)  # the map's own, as torch has it
        error = np.square(features - prediction.features.double().numpy()[0]).mean(axis=0)
        ensemble += (ALPHA * kl + (1 - ALPHA) * bilinear(error, side)) / len(timesteps)
    return np.sort(ensemble.ravel())[-TOP_K:].mean(), ensemble


def bilinear(values: np.ndarray, side: int) -> np.ndarray:
    """A square map enlarged between the centres of its pixels, the border repeated."""
    places = ((np.arange(side) + 0.5) * len(values) / side - 0.5).clip(0, len(values) - 1)
    rows = np.stack([np.interp(places, np.arange(len(values)), column) for column in values.T], axis=1)
    return np.stack([np.interp(places, np.arange(len(values)), row) for row in rows])


def test_papers_score_is_equation_11_written_out():
    # What the pipeline was calibrated with before leaves no trace.
    pipe = tiny_pipeline(smoothing_sigma=3.0, top_k=5, weights={"residual": 1.0})
    calibration = pipe.calibrate(smooth_images(4, seed=4), score="paper")
    assert calibration.config.num_calibration_images == 4  # none gives statistics
    images = smooth_images(3, seed=8)
    output = pipe(images)
    for image, score, anomaly_map in zip(images, output.image_scores, output.anomaly_maps, strict=True):
        expected_score, expected_map = papers_score(pipe, image)
        np.testing.assert_allclose(anomaly_map, expected_map, rtol=1e-3, atol=1e-4)
        assert score == pytest.approx(expected_score, rel=1e-4)


def test_score_by_name_keeps_what_is_not_of_the_score():
    pipe = tiny_pipeline(seed=7, smoothing_sigma=3.0)
    pipe.calibrate(smooth_images(4, seed=4), score="paper", top_k=9)
    score = pipe.calibration.score_config
    assert (score.seed, score.top_k, score.smoothing_sigma) == (7, 9, 0.0)
