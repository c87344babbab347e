"""What `pipe.reconstruct` promises, for every preset."""

import numpy as np
import pytest
import torch
from diffad.diffusion.chain import chain_step
from diffad.diffusion.noise import timestep_noise
from diffad.diffusion.reverse_step import add_noise, posterior_mean, predict_x0
from diffad.imaging.preprocessing import resize_rgb, to_model_range
from diffad.repair.gradient_denoising import gradient_step, loss_and_gradient, unit_direction
from diffad.repair.presets import GradientDenoising
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline

FAST = {
    "default": {"timesteps": (100, 20)},
    "paper": {"num_steps": 4, "denoise_every": 2},
    "gradient_descent": {"num_steps": 2},
    "partial_diffusion": {"timestep": 60, "num_inference_steps": 50},
}


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(20, seed=7), smoothing_sigma=1.0)
    return pipe


@pytest.fixture(scope="module")
def defective():
    images = smooth_images(5, seed=8, size=(48, 40))
    for index, image in enumerate(images):
        pixels = np.array(image)
        pixels[10 : 18 + index, 12:22] = (255, 0, 255)
        images[index] = Image.fromarray(pixels)
    return images


@pytest.mark.parametrize("preset", FAST)
def test_repeatable_and_independent_of_the_batch(pipe, defective, preset):
    alone = pipe.reconstruct(defective, preset, batch_size=1, **FAST[preset])
    again = pipe.reconstruct(defective, preset, batch_size=1, **FAST[preset])
    together = pipe.reconstruct(defective[::-1], preset, batch_size=3, **FAST[preset])
    for one, two, other in zip(alone.images, again.images, together.images[::-1], strict=True):
        assert np.array_equal(one, two)
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
        assert one.size == (48, 40)


def test_default_leaves_normal_images_as_they_are(pipe):
    normals = smooth_images(20, seed=7)  # calibrated on: at most one of them is above the threshold
    output = pipe.reconstruct(normals, **FAST["default"])
    changed = [not np.array_equal(a, b) for a, b in zip(normals, output.images, strict=True)]
    verdicts = pipe(normals).is_defective
    assert changed == verdicts.tolist()


def test_default_changes_the_marked_region_only(pipe, defective):
    assert pipe(defective).is_defective.all()
    output = pipe.reconstruct(defective, margin=1, halo_share=0.6, attempts=1, **FAST["default"])
    for index, change in enumerate(output.difference_maps):
        assert change.max() > 0.1 and (change == 0).mean() > 0.2
        assert change[10 : 18 + index, 12:22].mean() > 2 * change.mean()


def test_algorithm_1_step_by_step(pipe, defective):
    """The paper's preset against a naive loop over the published formulas."""
    x = to_model_range(torch.from_numpy(resize_rgb(defective[0], pipe.image_size))[None])
    pipe.scheduler.set_timesteps(250)
    step = chain_step(pipe.scheduler, torch.tensor([32])).to(x)
    with torch.no_grad():
        for i in range(1, 5):
            _, gradient = loss_and_gradient(x, lambda images: pipe.gaussian(pipe.feature_extractor(images)))
            x = gradient_step(x, unit_direction(gradient), 0.02)
            if i % 2 == 0:
                epsilon = pipe.unet(x, 32).sample[:, :3]
                x = posterior_mean(predict_x0(x, epsilon, step), x, step)
    seen = []
    pipe.reconstruct(
        defective[0],
        GradientDenoising(num_steps=4, denoise_every=2),
        callback_on_step_end=lambda pipe, i, start, tensors: seen.append(tensors["images"]),
    )
    assert len(seen) == 6  # four gradient steps, two denoisings
    torch.testing.assert_close(seen[-1], x, rtol=0, atol=1e-5)


def test_partial_diffusion_starts_from_the_noised_image(pipe, defective):
    x = to_model_range(torch.from_numpy(resize_rgb(defective[0], pipe.image_size))[None])
    pipe.scheduler.set_timesteps(2)
    chain = pipe.scheduler.timesteps.tolist()
    step = chain_step(pipe.scheduler, torch.tensor([chain[-1]])).to(x)
    noisy = add_noise(x, timestep_noise(x.shape[1:], chain[-1], 0), step)
    with torch.no_grad():
        epsilon = pipe.unet(noisy, chain[-1]).sample[:, :3]
    expected = posterior_mean(predict_x0(noisy, epsilon, step), noisy, step)
    seen = []
    pipe.reconstruct(
        defective[0],
        "partial_diffusion",
        timestep=0,
        num_inference_steps=2,
        callback_on_step_end=lambda pipe, i, start, tensors: seen.append(tensors["images"]),
    )
    torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-5)


def test_callback_can_replace_images_and_intermediates_are_kept(pipe, defective):
    output = pipe.reconstruct(
        defective[:2],
        "gradient_descent",
        num_steps=3,
        intermediate_steps=(1, 3),
        callback_on_step_end=lambda pipe, i, start, tensors: {"images": torch.zeros_like(tensors["images"])},
    )
    assert [len(kept) for kept in output.intermediates] == [2, 2]
    assert np.unique(output.intermediates[0][0]).tolist() == [128]
    assert output.traces is None


def test_descent_lowers_the_loss(pipe, defective):
    trace = pipe.reconstruct(defective[0], "gradient_descent", num_steps=10, step_size=0.01, return_traces=True).traces[0]
    assert len(trace) == 11 and trace[-1] < trace[0]


@pytest.mark.parametrize("preset", FAST)
def test_traces_and_intermediates_do_not_depend_on_the_batch(pipe, defective, preset):
    images = [smooth_images(20, seed=7)[0], *defective[:2]]  # the default preset leaves the first one alone
    settings = {"intermediate_steps": "all", "return_traces": True, **FAST[preset]}
    together = pipe.reconstruct(images, preset, **settings)
    for i, image in enumerate(images):
        alone = pipe.reconstruct(image, preset, **settings)
        np.testing.assert_allclose(alone.traces[0], together.traces[i], rtol=1e-3)
        assert len(alone.intermediates[0]) == len(together.intermediates[i]) == len(alone.traces[0]) - 1


def test_no_gradient_leaks(pipe, defective):
    pipe.reconstruct(defective[0], "paper", **FAST["paper"])
    assert torch.is_grad_enabled()
    for component in (pipe.unet, pipe.feature_extractor, pipe.gaussian):
        assert all(parameter.grad is None for parameter in component.parameters())


def test_class_conditional_model_repairs_each_image_with_its_own_label(defective):
    pipe = tiny_pipeline(class_names=("nut", "bolt"))
    torch.nn.init.normal_(pipe.unet.class_embedding.weight, std=3)
    pipe.calibrate(smooth_images(20, seed=7), categories=[0, 1] * 10)
    images = [smooth_images(1, seed=7)[0], *defective[:3]]  # the first may be left alone, the others not
    together = pipe.reconstruct(images, categories=[0, 1, 0, 1], **FAST["default"])
    for image, label, repaired in zip(images, [0, 1, 0, 1], together.images, strict=True):
        alone = pipe.reconstruct(image, categories=[label], **FAST["default"]).images[0]
        assert np.abs(np.asarray(repaired, int) - np.asarray(alone, int)).max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_unet_repairs_much_the_same(pipe, defective, dtype):
    full = pipe.reconstruct(defective[0], **FAST["default"]).images[0]
    pipe.unet.to(dtype)
    half = pipe.reconstruct(defective[0], **FAST["default"]).images[0]
    pipe.unet.to(torch.float32)
    assert np.abs(np.asarray(full, int) - np.asarray(half, int)).mean() < 3


def test_wrong_arguments_are_named(pipe, defective):
    with pytest.raises(ValueError, match="unknown preset 'fast'; there are default, paper"):
        pipe.reconstruct(defective[0], "fast")
    with pytest.raises(ValueError, match="has no setting num_step; it has num_steps"):
        pipe.reconstruct(defective[0], "paper", num_step=3)
    with pytest.raises(ValueError, match="not calibrated"):
        tiny_pipeline().reconstruct(defective[0])
