"""Samples of the marked region, against a loop in double precision over the published formulas."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brightness_models import brightness_context
from diffad.diffusion.denoiser import Denoiser
from diffad.repair.fill import fill_from_surroundings
from diffad.repair.proposals import blend_in
from diffad.repair.sampling import RegionSampling, ddim_step, guided, renoise
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image
from tiny_pipeline import smooth_images, tiny_unet

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BARS = np.cumprod(1 - BETAS)
STRIDE = 8


def noise_of(number: int, count: int) -> torch.Tensor:
    """The draws of the context below, in order."""
    return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(number)).expand(count, 3, 32, 32)


def context_of(unet):
    """Dark is defective and far from good; denoised is by a UNet."""
    denoiser = Denoiser(unet, DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace"))

    def with_unet(count: int):
        context = brightness_context(None, lambda images: (images - 0.4).square().mean(dim=1), count, STRIDE)
        return dataclasses.replace(
            context,
            select=lambda index: with_unet(len(index)),
            predict_x0=lambda xt, t: denoiser(xt, torch.tensor([t])).x0,
            draw_noise=lambda images, number: noise_of(number, len(images)),
            chain_timesteps=lambda length: np.linspace(999, 0, length).round().astype(int).tolist(),
        )

    return with_unet


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """`(3, 3, 32, 32)`: two with a black rectangle, and a good one between them."""
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in smooth_images(3, seed=5)])
    images = torch.from_numpy(pixels).float() / 127.5 - 1
    images = images.clamp(-0.6, 0.6)
    images[0, :, 10:16, 12:20] = -1
    images[2, :, 20:30, 3:9] = -1
    return images


def naive_draw(unet, images: torch.Tensor, region: torch.Tensor, settings: dict, noise) -> tuple[torch.Tensor, list]:
    """One draw with the UNet in double precision: what comes out, and every step inside the region."""
    chain = np.linspace(999, 0, settings["num_inference_steps"]).round().astype(int)
    chain = chain[abs(chain - settings["start"]).argmin() :].tolist()
    a = ALPHA_BARS[chain[0]]
    x = a**0.5 * fill_from_surroundings(images, region) + (1 - a) ** 0.5 * noise()
    seen = []
    for t, following in zip(chain, [*chain[1:], None]):
        a, b = ALPHA_BARS[t], 1.0 if following is None else ALPHA_BARS[following]
        for repeat in range(settings["repeats"]):
            x = torch.where(region > 0, x, a**0.5 * images + (1 - a) ** 0.5 * noise())
            frame = F.pad(x, (4, 4, 4, 4), mode="reflect")  # half a stride on each side
            epsilon = unet(frame, t).sample[:, :3]
            x0 = ((frame - (1 - a) ** 0.5 * epsilon) / a**0.5).clamp(-1, 1)[..., 4:-4, 4:-4]
            for n in range(len(x0)):
                gradient = torch.where(region[n] > 0, 2 * (torch.where(region[n] > 0, x0[n], images[n]) - 0.4), 0.0)
                values = gradient[:, region[n, 0] > 0]
                step = (0.0 if following is None else settings["guidance"]) * gradient / values.square().mean().sqrt()
                x0[n] = torch.where(region[n] > 0, (x0[n] - step).clamp(-1, 1), x0[n])
            sigma = settings["eta"] * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5
            direction = (x - a**0.5 * x0) / (1 - a) ** 0.5
            x = b**0.5 * x0 + (1 - b - sigma**2) ** 0.5 * direction + sigma * noise()
            if following is None and repeat == settings["repeats"] - 1:
                x = torch.stack([blend_in(images[n], region[n], x[n][None])[0] for n in range(len(x))])
            seen.append(torch.where(region > 0, x, images))
            if repeat < settings["repeats"] - 1:
                x = (a / b) ** 0.5 * seen[-1] + (1 - a / b) ** 0.5 * noise()
    return seen[-1], seen


@pytest.mark.parametrize(
    "changes", [{}, {"eta": 0.3}, {"repeats": 2}, {"guidance": 0.2}, {"repeats": 2, "guidance": 0.1, "eta": 0.7}], ids=str
)
@torch.no_grad()
def test_draws_step_by_step(images, changes):
    settings = {"start": 400, "num_inference_steps": 8, "eta": 1.0, "repeats": 1, "guidance": 0.0} | changes
    unet = tiny_unet(8)
    context = dataclasses.replace(context_of(unet)(3), image_threshold=torch.full((3,), 0.9))
    seen = []
    result = RegionSampling(**settings, draws=2, margin=1).run(images, context, lambda x: seen.append(x) or x)
    defective = torch.tensor([0, 2])
    region = (result.replaced[defective] == 1).double()
    doubled, numbers, naive = copy.deepcopy(unet).double(), iter(range(1, 1000)), []
    for _ in range(2):
        of_draw = naive_draw(doubled, images[defective].double(), region, settings, lambda: noise_of(next(numbers), 2).double())
        naive.append(of_draw)
    steps = [step for _, of_draw in naive for step in of_draw]
    assert len(seen) == len(steps) == 2 * 4 * settings["repeats"]
    for actual, expected in zip(seen, steps, strict=True):
        torch.testing.assert_close(actual[defective].double(), expected, rtol=0, atol=2e-4)
        assert torch.equal(actual[1], images[1])
    # Of both draws the one that is nearest to good parts, each image its own
    losses = torch.stack([(drawn - 0.4).square().mean(dim=(1, 2, 3)) for drawn, _ in naive])  # (2, 2)
    for n, index in enumerate(defective.tolist()):
        torch.testing.assert_close(result.images[index].double(), naive[losses[:, n].argmin()][0][n], rtol=0, atol=2e-4)
    outside = (result.replaced == 0).expand_as(images)
    assert torch.equal(result.images[outside], images[outside]) and torch.equal(result.images[1], images[1])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_is_that_of_diffusers(eta):
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    xt, epsilon, noise = torch.randn(3, 2, 3, 8, 8, generator=generator)
    for t in (900, 300, 0):
        a = float(scheduler.alphas_cumprod[t])
        b = float(scheduler.alphas_cumprod[t - 100]) if t else 1.0
        expected = scheduler.step(epsilon, t, xt, eta=eta, variance_noise=noise)
        x0 = expected.pred_original_sample
        torch.testing.assert_close(ddim_step(x0, xt, a, b, eta, noise), expected.prev_sample, rtol=1e-4, atol=1e-4)


def test_noise_added_in_two_steps_is_that_of_one():
    """In mean and variance; and a step of the whole chain with eta = 1 has the posterior's."""
    x, zero, one = torch.full((1,), 0.8, dtype=torch.float64), torch.zeros(1), torch.ones(1, dtype=torch.float64)
    twice = renoise(renoise(x, 1.0, 0.7, zero), 0.7, 0.3, zero)
    torch.testing.assert_close(twice, renoise(x, 1.0, 0.3, zero))
    first, second = renoise(renoise(0 * x, 1.0, 0.7, one), 0.7, 0.3, zero), renoise(0 * x, 0.7, 0.3, one)
    torch.testing.assert_close(first**2 + second**2, renoise(0 * x, 1.0, 0.3, one) ** 2)
    a, b = ALPHA_BARS[500], ALPHA_BARS[499]
    xt = torch.full((1,), -0.2, dtype=torch.float64)
    mean, spread = ddim_step(x, xt, a, b, 1.0, zero), ddim_step(0 * x, 0 * xt, a, b, 1.0, one)
    beta = 1 - a / b
    torch.testing.assert_close(mean, b**0.5 * beta / (1 - a) * x + (1 - beta) ** 0.5 * (1 - b) / (1 - a) * xt)
    torch.testing.assert_close(spread**2, (1 - b) / (1 - a) * beta * one)


def test_guidance_steps_downhill_inside_and_nowhere_else(images):
    region = torch.zeros(3, 1, 32, 32)
    region[:, :, 8:16, 8:16] = 1
    x0 = 0.5 * images
    distance = lambda x: (x - 0.4).square().mean(dim=1)  # noqa: E731
    moved = guided(x0, images, region, 0.1, distance)
    inside = (region > 0).expand_as(x0)
    assert torch.equal(moved[~inside], x0[~inside])
    step = (moved - x0)[inside].view(3, -1)
    torch.testing.assert_close(step.square().mean(dim=1).sqrt(), torch.full((3,), 0.1))
    assert (distance(torch.where(region > 0, moved, images)) <= distance(torch.where(region > 0, x0, images)) + 1e-6).all()
    flat = guided(x0, images, region, 0.1, lambda x: 0 * x.sum(dim=1))  # nothing to go down
    assert torch.equal(flat, x0)


@pytest.fixture(scope="module")
def defective():
    made = smooth_images(4, seed=8, size=(48, 40))
    for index, image in enumerate(made[:3]):
        pixels = np.array(image)
        pixels[10 : 16 + index, 12:20] = (255, 0, 255)
        made[index] = Image.fromarray(pixels)
    return made


def test_every_step_is_one_pass_of_the_unet(pipe, defective):
    sizes = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    pipe.reconstruct(defective[0], "samples", num_inference_steps=12, draws=2)
    hook.remove()
    assert sizes.count((1, 3, 32 + STRIDE, 32 + STRIDE)) == 2 * 6


def test_repeatable_seeded_and_independent_of_the_batch(pipe, defective):
    settings = {"num_inference_steps": 12, "draws": 2, "guidance": 0.05, "intermediate_steps": "all"}
    together = pipe.reconstruct(defective, "samples", **settings)
    again = pipe.reconstruct(defective, "samples", **settings)
    alone = [pipe.reconstruct(image, "samples", batch_size=1, **settings) for image in defective]
    other = pipe.reconstruct(defective, "samples", seed=1, **settings)
    for i in range(len(defective)):
        assert np.array_equal(together.images[i], again.images[i])
        difference = np.abs(np.asarray(together.images[i], int) - np.asarray(alone[i].images[0], int))
        assert difference.max() <= 1
        assert len(together.intermediates[i]) == len(alone[i].intermediates[0]) == 2 * 6
    assert not np.array_equal(together.images[0], other.images[0])
    assert together.confident is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"eta": 1.5}, r"eta must lie in 0\.\.1, got 1\.5"),
        ({"guidance": -0.1}, r"guidance must lie in 0\.\.1, got -0\.1"),
        ({"margin": -1}, "margin must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RegionSampling(**settings)


def test_a_start_beyond_the_models_noise_levels_is_named(pipe, defective):
    with pytest.raises(ValueError, match=r"start must lie in 0\.\.999, the model's noise levels, got 1000"):
        pipe.reconstruct(defective, "samples", start=1000)
