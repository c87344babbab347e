"""Algorithm 1 as printed and Eq. 13, against loops in double precision over the published formulas."""

import copy

import numpy as np
import pytest
import torch
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.repair.gradient_denoising import GradientDenoising, denoising_timesteps
from diffad.repair.presets import PRESETS
from diffusers import DDPMScheduler
from PIL import Image
from scipy import stats
from tiny_pipeline import smooth_images

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BARS = np.cumprod(1 - BETAS)
CHAIN = [round(999 * k / 249) for k in range(249, -1, -1)]  # 999, 995, ... 4, 0


@pytest.fixture(scope="module")
def doubled(pipe):
    """Networks of the pipeline in double precision."""
    return [copy.deepcopy(part).double() for part in (pipe.unet, pipe.feature_extractor, pipe.gaussian)]


@pytest.fixture(scope="module")
def defective():
    pixels = np.array(smooth_images(1, seed=8)[0])
    pixels[10:18, 12:22] = (255, 0, 255)
    return Image.fromarray(pixels)


def model_input(pipe, image: Image.Image) -> torch.Tensor:
    return to_model_range(torch.from_numpy(resize_rgb(image, pipe.image_size))[None])


def steps_of(pipe, image: Image.Image, preset, **settings) -> list[torch.Tensor]:
    """The images after every step of a repair, as the callback sees them."""
    seen = []
    pipe.reconstruct(
        image, preset, callback_on_step_end=lambda pipe, i, start, tensors: seen.append(tensors["images"]), **settings
    )
    return seen


def eq12_gradient(doubled, x: torch.Tensor) -> torch.Tensor:
    _, extractor, gaussian = doubled
    x = x.clone().requires_grad_()
    gaussian(extractor(x)).mean().backward()
    return x.grad


def p_theta(doubled, xt: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the reverse step of the 250-step chain."""
    later = CHAIN[CHAIN.index(t) + 1 :]
    abar, abar_prev = ALPHA_BARS[t], ALPHA_BARS[later[0]] if later else 1.0
    beta = 1 - abar / abar_prev
    posterior_variance = (1 - abar_prev) / (1 - abar) * beta
    with torch.no_grad():
        epsilon, v = doubled[0](xt, t).sample.chunk(2, dim=1)
    x0 = ((xt - (1 - abar) ** 0.5 * epsilon) / abar**0.5).clamp(-1, 1)
    mean = (abar_prev**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - abar_prev) * xt) / (1 - abar)
    u = (v.clamp(-1, 1) + 1) / 2
    return mean, torch.exp(u * np.log(beta) + (1 - u) * np.log(posterior_variance)).sqrt()


def noise_of(seed: int, step: int) -> torch.Tensor:
    """Noise of a drawn denoising step: numbers from the length of the full chain on are those of draws."""
    return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed * 1_000_003 + 1000 + step))


def test_algorithm_1_step_by_step_draws_included(pipe, doubled, defective):
    num_steps, every, s, seed = 8, 2, 0.05, 3
    stretched = BETAS[np.round(np.linspace(0, 999, num_steps)).astype(int)]
    x, expected, variance, timesteps = model_input(pipe, defective).double(), [], 0.0, []
    for i in range(1, num_steps + 1):
        beta_hat = s**2 * stretched[i - 1] / stretched.mean()
        g = eq12_gradient(doubled, x)
        x = np.sqrt(1 - beta_hat) * x + np.sqrt(beta_hat) * -g / g.std()
        expected.append(x)
        variance = (1 - beta_hat) * variance + beta_hat
        if i % every == 0:
            t = min(CHAIN, key=lambda t: abs(1 - ALPHA_BARS[t] - variance))
            mean, std = p_theta(doubled, x, t)
            x = mean + std * noise_of(seed, i)
            expected.append(x)
            timesteps.append(t)
            abar, abar_prev = ALPHA_BARS[t], ALPHA_BARS[CHAIN[CHAIN.index(t) + 1]]
            beta = 1 - abar / abar_prev
            xt_coefficient = (1 - beta) ** 0.5 * (1 - abar_prev) / (1 - abar)
            variance = xt_coefficient**2 * variance + (1 - abar_prev) / (1 - abar) * beta  # of the mean, and of the draw
    assert len(set(timesteps)) > 2 and min(timesteps) > 0
    seen = steps_of(pipe, defective, "algorithm_1", num_steps=num_steps, denoise_every=every, step_size=s, seed=seed)
    assert len(seen) == len(expected) == 12
    for actual, image in zip(seen, expected, strict=True):
        torch.testing.assert_close(actual.double(), image, rtol=0, atol=1e-4)


def test_drawn_steps_of_200_seeds_have_mean_and_variance_of_p_theta(pipe, doubled, defective):
    settings = {"num_steps": 1, "denoise_every": 1, "step_size": 0.03}
    runs = [steps_of(pipe, defective, "algorithm_1", seed=seed, **settings) for seed in range(200)]
    noisy = runs[0][0]
    assert all(torch.equal(gradient_step, noisy) for gradient_step, _ in runs)
    mean, std = p_theta(doubled, noisy.double(), 4)  # 1 - abar_4 = 0.0007 is nearest to 0.03^2
    assert std.max() / std.min() > 1.2  # learned, not one for all pixels
    z = ((torch.cat([drawn for _, drawn in runs]).double() - mean) / std).flatten(1).numpy()  # (200, 3 * 32 * 32)
    assert stats.kstest(z.mean(axis=0) * 200**0.5, "norm").pvalue > 1e-3
    assert stats.kstest((z**2).sum(axis=0), stats.chi2(200).cdf).pvalue > 1e-3
    # Spread of the mean and of the variance of all values together
    assert abs(z.mean()) < 4 / z.size**0.5 and abs((z**2).mean() - 1) < 4 * (2 / z.size) ** 0.5


def test_eq_13_with_decay_step_and_gradient_as_they_are(pipe, doubled, defective):
    omega, s = 0.9, 2e-4
    x, expected = model_input(pipe, defective).double(), []
    for _ in range(5):
        x = omega * x - s * eq12_gradient(doubled, x)
        expected.append(x)
    assert 0.01 < (expected[0] - omega * model_input(pipe, defective)).abs().max() < 1  # the gradient takes part
    seen = steps_of(pipe, defective, "gradient_descent", num_steps=5, omega=omega, step_size=s, normalize_gradient=False)
    for actual, image in zip(seen, expected, strict=True):
        torch.testing.assert_close(actual.double(), image, rtol=0, atol=1e-4)


def test_step_sizes_follow_the_noise_schedule_with_the_mean_that_s_says():
    method = GradientDenoising(num_steps=1000, step_size=0.02, schedule="betas")
    squared = np.square(method.step_sizes(torch.from_numpy(BETAS)))
    np.testing.assert_allclose(squared, 0.02**2 * BETAS / BETAS.mean(), rtol=1e-12)
    assert squared.mean() == pytest.approx(0.02**2)
    few = np.square(GradientDenoising(num_steps=5, step_size=0.1, schedule="betas").step_sizes(torch.from_numpy(BETAS)))
    assert few.mean() == pytest.approx(0.01) and few[4] / few[0] == pytest.approx(200)
    assert GradientDenoising(num_steps=3).step_sizes(torch.from_numpy(BETAS)) == [0.02] * 3
    assert PRESETS["algorithm_1"].schedule == "betas"
    with pytest.raises(ValueError, match=r"step_size 0\.8 is too large: the schedule takes it to 1\.1"):
        GradientDenoising(num_steps=50, step_size=0.8, schedule="betas").step_sizes(torch.from_numpy(BETAS))


@pytest.mark.parametrize("schedule", ["constant", "betas"])
@pytest.mark.parametrize("length", [250, 1000])
def test_timesteps_are_those_of_the_noise_that_a_simulation_finds(schedule, length):
    """Directions as noise, and the exact reverse step of data that are 0 everywhere."""
    scheduler = DDPMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(length)
    chain = scheduler.timesteps.tolist()
    sizes = GradientDenoising(num_steps=100, schedule=schedule).step_sizes(torch.from_numpy(BETAS))
    timesteps = denoising_timesteps(sizes, 5, torch.from_numpy(ALPHA_BARS), chain)
    rng = np.random.default_rng(0)
    x = np.zeros(100_000)
    for i, s in enumerate(sizes, start=1):
        x = (1 - s**2) ** 0.5 * x + s * rng.standard_normal(x.shape)
        if i % 5 == 0:
            t = timesteps[i // 5 - 1]
            position = chain.index(t)
            above, level, below = (
                1 - ALPHA_BARS[chain[k]] if k < len(chain) else 0.0 for k in range(position - 1, position + 2)
            )
            assert abs(x.var() - level) < 0.5 * max(above - level, level - below) + 0.02 * level
            beta = 1 - (1 - level) / (1 - below)
            noise = (below / level * beta) ** 0.5 * rng.standard_normal(x.shape)
            x = (1 - beta) ** 0.5 * below / level * x + noise


def test_complete_denoising_starts_every_round_anew():
    first, *others = denoising_timesteps([0.02] * 20, 5, torch.from_numpy(ALPHA_BARS), range(999, -1, -1), complete=True)
    assert others == [first] * 3
    assert first == np.abs(ALPHA_BARS - (1 - 0.02**2) ** 5).argmin()
