"""Presets and their settings, under present and former names."""

import warnings

import numpy as np
import pytest
from diffad.repair.gradient_denoising import GradientDenoising, GradientDescent
from diffad.repair.inpainting import Inpainting
from diffad.repair.presets import PRESETS, resolve_method
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.mark.parametrize(("preset", "method"), PRESETS.items())
def test_a_preset_is_its_method_with_the_settings_given(preset, method):
    settings = {
        "mean": {"content": "mean", "texture_strength": 0.0},
        "algorithm_1": {"timestep": None, "stochastic": True, "schedule": "betas"},
    }
    assert resolve_method(preset, {}) == method == type(method)(**settings.get(preset, {}))
    assert resolve_method(method, {}) == method


def test_settings_replace_those_of_a_preset_or_of_a_method():
    assert resolve_method("paper", {"num_steps": 3}) == GradientDenoising(num_steps=3)
    assert resolve_method(Inpainting(spins=2), {"attempts": 1}) == Inpainting(spins=2, attempts=1)


@pytest.mark.parametrize(
    ("former", "present"), [("grain", "texture_strength"), ("halo_share", "border_share"), ("contrast", "border_difference")]
)
def test_former_names_of_settings_work_with_a_warning(former, present):
    with pytest.warns(FutureWarning, match=f"{former} is now called {present}"):
        assert resolve_method("default", {former: 0.9}) == Inpainting(**{present: 0.9})
    with pytest.raises(ValueError, match=f"{former} is the former name of {present}: give one of them"):
        resolve_method("default", {former: 0.9, present: 0.9})
    with pytest.raises(ValueError, match=f"has no setting {former}"):
        resolve_method("paper", {former: 0.9})


def test_former_names_work_through_the_pipeline():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(21, seed=7), smoothing_sigma=1.0)
    image = np.array(smooth_images(1, seed=8)[0])
    image[10:20, 12:22] = (255, 0, 255)
    settings = {"timesteps": (100, 20), "attempts": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        present = pipe.reconstruct(Image.fromarray(image), border_share=0.1, border_difference=0.1, **settings)
    with pytest.warns(FutureWarning):
        former = pipe.reconstruct(Image.fromarray(image), halo_share=0.1, contrast=0.1, **settings)
    default = pipe.reconstruct(Image.fromarray(image), **settings)
    assert np.array_equal(former.images[0], present.images[0]) and not np.array_equal(former.images[0], default.images[0])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (Inpainting, {"timesteps": ()}, "timesteps must hold at least one"),
        (Inpainting, {"spins": 0}, "spins must be at least 1, got 0"),
        (Inpainting, {"margin": -1}, "margin must be at least 0, got -1"),
        (Inpainting, {"attempts": -1}, "attempts must be at least 0, got -1"),
        (Inpainting, {"content": "median"}, "content must be best or mean, got 'median'"),
        (GradientDescent, {"num_steps": -1}, "num_steps must be at least 0, got -1"),
        (GradientDescent, {"step_size": 1.5}, r"step_size must lie in 0\.\.1, got 1\.5"),
        (GradientDescent, {"omega": 1.1}, r"omega must lie in 0\.\.1 and step_size be at least 0, got 1\.1 and 0\.02"),
        (GradientDescent, {"omega": 0.9, "step_size": -1}, r"step_size be at least 0, got 0\.9 and -1"),
        (GradientDenoising, {"schedule": "cosine"}, "unknown schedule 'cosine'; there are constant, betas"),
        (GradientDenoising, {"timestep": None, "normalize_gradient": False}, "derived for normalize_gradient=True: name a"),
        (GradientDenoising, {"step_size": 1.5}, r"step_size must lie in 0\.\.1, got 1\.5"),
        (GradientDenoising, {"denoise_every": 0}, "denoise_every must be at least 1, got 0"),
        (GradientDenoising, {"num_steps": -1}, "num_steps must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_named(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)
