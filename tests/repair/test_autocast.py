"""Repair inside a caller's autocast: the UNet computes in the lower precision, everything else in float32."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline

FEW_STEPS = {
    "default": {"timesteps": (100, 20), "texture_strength": 1.0},
    "paper": {"num_steps": 4, "denoise_every": 2},
    "gradient_descent": {"num_steps": 2},
    "partial_diffusion": {"timestep": 60, "num_inference_steps": 50, "stochastic": True},
}


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(20, seed=7), smoothing_sigma=1.0)
    return pipe


@pytest.fixture(scope="module")
def defective():
    images = []
    for image in smooth_images(2, seed=8, size=(48, 40)):
        pixels = np.array(image)
        pixels[10:20, 12:22] = (255, 0, 255)
        images.append(Image.fromarray(pixels))
    return images


@pytest.mark.parametrize("preset", FEW_STEPS)
def test_autocast_changes_repair_by_rounding_of_the_unet_only(pipe, defective, preset):
    unet_types, steps = set(), []
    hook = pipe.unet.register_forward_hook(lambda module, inputs, output: unet_types.add(output.sample.dtype))

    def repair():
        steps.clear()
        return pipe.reconstruct(
            defective,
            preset,
            return_traces=True,
            callback_on_step_end=lambda pipe, step, start, tensors: steps.append(tensors["images"]),
            **FEW_STEPS[preset],
        )

    try:
        expected = repair()
        unet_types.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = repair()
            assert torch.is_autocast_enabled("cpu")
    finally:
        hook.remove()
    assert unet_types == (set() if preset == "gradient_descent" else {torch.bfloat16})
    assert all(images.dtype == torch.float32 and images.isfinite().all() for images in steps)
    for image, full, difference, trace in zip(
        actual.images, expected.images, actual.difference_maps, actual.traces, strict=True
    ):
        assert np.isfinite(trace).all() and difference.any()
        assert np.abs(np.asarray(image, int) - np.asarray(full, int)).mean() < 1
    if preset == "gradient_descent":  # no UNet, no rounding
        np.testing.assert_array_equal(actual.traces, expected.traces)
