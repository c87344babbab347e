"""What `pipe.reconstruct` promises, for every preset."""

import numpy as np
import pytest
import torch
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.repair.gradient_denoising import GradientDenoising, loss_and_gradient
from diffusers import DDPMScheduler
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline

FAST = {
    "default": {"timesteps": (100, 20)},
    "paper": {"num_steps": 4, "denoise_every": 2},
    "algorithm_1": {"num_steps": 4, "denoise_every": 2},
    "gradient_descent": {"num_steps": 2},
    "partial_diffusion": {"timestep": 60, "num_inference_steps": 50},
}


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
    good_images = smooth_images(20, seed=7)  # calibrated on: at most one of them is above the threshold
    output = pipe.reconstruct(good_images, **FAST["default"])
    changed = [not np.array_equal(a, b) for a, b in zip(good_images, output.images, strict=True)]
    verdicts = pipe(good_images).is_defective
    assert changed == verdicts.tolist()


def test_default_changes_the_marked_region_only(pipe, defective):
    assert pipe(defective).is_defective.all()
    output = pipe.reconstruct(defective, margin=1, border_share=0.6, attempts=1, **FAST["default"])
    for index, change in enumerate(output.difference_maps):
        assert change.max() > 0.1 and (change == 0).mean() > 0.2
        assert change[10 : 18 + index, 12:22].mean() > 2 * change.mean()


def model_input(pipe, image: Image.Image) -> torch.Tensor:
    return to_model_range(torch.from_numpy(resize_rgb(image, pipe.image_size))[None])


def reverse_mean(pipe, xt: torch.Tensor, t: int, chain_length: int) -> torch.Tensor:
    """Mean of p_theta(x_{t-1} | x_t) of a respaced chain, by the formulas of the DDPM in double precision."""
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(chain_length)
    chain = [*scheduler.timesteps.tolist(), None]
    previous = chain[chain.index(t) + 1]
    alpha_bars = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0).tolist()
    alpha_bar, previous_alpha_bar = alpha_bars[t], 1.0 if previous is None else alpha_bars[previous]
    alpha = alpha_bar / previous_alpha_bar
    with torch.no_grad():
        epsilon = pipe.unet(xt, t).sample[:, :3]
    x0 = ((xt - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5).clamp(-1, 1)
    mean = previous_alpha_bar**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - previous_alpha_bar) * xt
    return mean / (1 - alpha_bar)


def steps_of(pipe, image: Image.Image, preset, **settings) -> list[torch.Tensor]:
    """The images after every step of a repair, as the callback sees them."""
    seen = []
    pipe.reconstruct(
        image, preset, callback_on_step_end=lambda pipe, i, start, tensors: seen.append(tensors["images"]), **settings
    )
    return seen


def test_algorithm_1_step_by_step(pipe, defective):
    """The paper's preset against a naive loop over the published formulas."""
    x = model_input(pipe, defective[0])
    expected = []
    for i in range(1, 5):
        _, gradient = loss_and_gradient(x, lambda images: pipe.gaussian(pipe.feature_extractor(images)))
        x = (1 - 0.02**2) ** 0.5 * x - 0.02 * gradient / gradient.std()
        expected.append(x)
        if i % 2 == 0:
            x = reverse_mean(pipe, x, 32, 250)
            expected.append(x)
    seen = steps_of(pipe, defective[0], GradientDenoising(num_steps=4, denoise_every=2))
    assert len(seen) == 6  # four gradient steps, two denoisings
    torch.testing.assert_close(torch.cat(seen), torch.cat(expected), rtol=0, atol=1e-5)


def test_partial_diffusion_starts_from_the_noised_image(pipe, defective):
    noisy = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, inputs: noisy.append(inputs[0]))
    seen = steps_of(pipe, defective[0], "partial_diffusion", timestep=200, num_inference_steps=10)
    hook.remove()
    assert len(seen) == 3  # t = 222, 111, 0
    alpha_bar = float(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[222])
    noise = (noisy[0] - alpha_bar**0.5 * model_input(pipe, defective[0])) / (1 - alpha_bar) ** 0.5
    assert noise.mean().abs() < 0.1 and noise.std().item() == pytest.approx(1, abs=0.1)
    for before, t, after in zip([noisy[0], *seen], (222, 111, 0), seen):
        torch.testing.assert_close(after, reverse_mean(pipe, before, t, 10), rtol=0, atol=1e-5)


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


def test_class_conditional_model_repairs_each_image_by_its_own_category(defective):
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
    with pytest.raises(ValueError, match="unknown preset 'fast'; there are default, mean, samples, paper"):
        pipe.reconstruct(defective[0], "fast")
    with pytest.raises(ValueError, match="has no setting num_step; it has num_steps"):
        pipe.reconstruct(defective[0], "paper", num_step=3)
    with pytest.raises(ValueError, match=r"timesteps \[33\] are not in the chain of 250 steps; the nearest are \[32\]"):
        pipe.reconstruct(defective[0], "paper", timestep=33)
    with pytest.raises(ValueError, match=r"timesteps \[-1, 1000\] are not in the chain of 1000 steps"):
        pipe.reconstruct(defective[0], timesteps=(1000, 100, -1))
    with pytest.raises(ValueError, match="not calibrated"):
        tiny_pipeline().reconstruct(defective[0])
