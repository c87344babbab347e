"""Repair inside a caller's autocast: the UNet computes in the lower precision, everything else in float32."""

import numpy as np
import pytest
import torch
from diffad.pipeline_output import ReconstructionOutput
from diffad.repair.presets import PRESETS
from PIL import Image
from tiny_pipeline import smooth_images

FEW_STEPS = {
    "default": {"timesteps": (100, 20), "texture_strength": 1.0},
    "mean": {"timesteps": (100, 20)},
    "samples": {"start": 60, "draws": 1, "guidance": 0.01},
    "paper": {"num_steps": 4, "denoise_every": 2},
    "algorithm_1": {"num_steps": 4, "denoise_every": 2},
    "gradient_descent": {"num_steps": 2},
    "partial_diffusion": {"timestep": 60, "num_inference_steps": 50, "stochastic": True},
}


@pytest.fixture(scope="module")
def defective():
    images = []
    for image in smooth_images(2, seed=8, size=(48, 40)):
        pixels = np.array(image)
        pixels[10:20, 12:22] = (255, 0, 255)
        images.append(Image.fromarray(pixels))
    return images


def repair(pipe, images: list[Image.Image], preset: str) -> tuple[list[torch.Tensor], ReconstructionOutput]:
    """The images after every step, and what comes out."""
    steps = []
    output = pipe.reconstruct(
        images,
        preset,
        return_traces=True,
        callback_on_step_end=lambda pipe, step, start, tensors: steps.append(tensors["images"]),
        **FEW_STEPS[preset],
    )
    return steps, output


def test_every_preset_is_tested():
    assert FEW_STEPS.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", FEW_STEPS)
def test_repair_under_autocast_is_finite_and_near_the_one_without(pipe, defective, preset):
    unet_types = set()
    _, expected = repair(pipe, defective, preset)
    hook = pipe.unet.register_forward_hook(lambda module, inputs, output: unet_types.add(output[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steps, actual = repair(pipe, defective, preset)
    hook.remove()
    assert unet_types == (set() if preset == "gradient_descent" else {torch.bfloat16})
    assert all(images.dtype == torch.float32 and images.isfinite().all() for images in steps)
    for image, near, difference, trace in zip(
        actual.images, expected.images, actual.difference_maps, actual.traces, strict=True
    ):
        assert np.isfinite(trace).all() and difference.any()
        assert np.abs(np.asarray(image, int) - np.asarray(near, int)).mean() < 1


@pytest.mark.parametrize("preset", FEW_STEPS)
def test_nothing_but_the_unet_follows_autocast(pipe, defective, preset, monkeypatch):
    """With a UNet that stays in float32 itself, repair is bit for bit the one without autocast."""
    _, expected = repair(pipe, defective, preset)
    forward = pipe.unet.forward

    def in_float32(*args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", in_float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, actual = repair(pipe, defective, preset)
    np.testing.assert_array_equal(actual.traces, expected.traces)
    for image, same in zip(actual.images, expected.images, strict=True):
        np.testing.assert_array_equal(image, same)
