"""The Gaussians of one step of the diffusion process, against diffusers and Bayes' rule."""

import math

import numpy as np
import pytest
import torch
from bayes_reference import FULL, RESPACED, bayes_posterior, exact_step, random_images, random_normal, scheduler_in_float64
from diffad.diffusion.reverse_step import (
    add_noise,
    clamp_to_range,
    model_log_variance,
    posterior_mean,
    predict_x0,
    prediction_target,
)

SHAPE = (2, 3, 4, 4)
STEPS = [(None, 1, 0), (None, 20, 19), (250, 20, 16), (250, 401, 397)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize(
    ("num_steps", "config"),
    [
        (1000, {}),
        (250, {}),
        (50, {"timestep_spacing": "leading", "steps_offset": 1}),
        (10, {"timestep_spacing": "trailing"}),
        (40, {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_reverse_step_matches_diffusers_ancestral_sampling(num_steps, config, prediction_type):
    scheduler = scheduler_in_float64(prediction_type=prediction_type, **config)
    scheduler.set_timesteps(num_steps)
    ascending = scheduler.timesteps.flip(0).tolist()
    x0, noise, v = random_images(*SHAPE), random_normal(*SHAPE), random_images(*SHAPE, seed=2)
    prediction = prediction_target(x0, noise, prediction_type) + 0.1
    for index in (0, 3, num_steps // 2, -2):
        timestep = scheduler.timesteps[index]
        step = exact_step([timestep.item()], ascending, scheduler.alphas_cumprod.numpy())
        xt = add_noise(x0, noise, step)
        expected = scheduler.step(torch.cat([prediction, v], dim=1), timestep, xt, torch.Generator().manual_seed(3))

        x0_predicted = predict_x0(xt, prediction, step, prediction_type)
        std = torch.exp(0.5 * model_log_variance(v, step))
        sampled = posterior_mean(x0_predicted, xt, step) + std * random_normal(*SHAPE, seed=3)
        torch.testing.assert_close(x0_predicted, expected.pred_original_sample, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sampled, expected.prev_sample, rtol=1e-6, atol=1e-9)


def test_add_noise_matches_diffusers_for_a_batch_of_timesteps():
    scheduler = scheduler_in_float64()
    x0, noise, timesteps = random_images(3, 3, 4, 4), random_normal(3, 3, 4, 4), torch.tensor([999, 0, 201])
    noisy = add_noise(x0, noise, exact_step(timesteps.tolist(), FULL, scheduler.alphas_cumprod.numpy()))
    torch.testing.assert_close(noisy, scheduler.add_noise(x0, noise, timesteps), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_right_prediction_inverts_add_noise_and_any_other_stays_in_the_image_range(prediction_type):
    step = exact_step([1, 401])
    x0, noise = random_images(*SHAPE), random_normal(*SHAPE)
    noisy, target = add_noise(x0, noise, step), prediction_target(x0, noise, prediction_type)
    torch.testing.assert_close(predict_x0(noisy, target, step, prediction_type), x0, rtol=0, atol=1e-12)
    extremes = [predict_x0(noisy, target + shift, step, prediction_type).unique().tolist() for shift in (-500, 500)]
    assert extremes == ([[1], [-1]] if prediction_type == "epsilon" else [[-1], [1]])


@pytest.mark.parametrize(("num_steps", "timestep", "predecessor"), STEPS)
def test_posterior_mean_is_that_of_bayes_rule(num_steps, timestep, predecessor):
    step = exact_step([timestep], FULL if num_steps is None else RESPACED)
    x0, xt = random_images(*SHAPE), random_normal(*SHAPE)
    expected, _ = bayes_posterior(x0, xt, timestep, predecessor)
    torch.testing.assert_close(posterior_mean(x0, xt, step), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("num_steps", "timestep", "predecessor"), STEPS)
def test_variance_runs_from_posterior_variance_to_beta_in_log_space(num_steps, timestep, predecessor):
    step = exact_step([timestep], FULL if num_steps is None else RESPACED)
    alphas = 1 - np.linspace(1e-4, 0.02, 1000)
    beta, posterior = 1 - np.prod(alphas[predecessor + 1 : timestep + 1]), bayes_posterior(0, 0, timestep, predecessor)[1]
    v = torch.tensor([-1.0, -0.5, 0.0, 1.0, 2.0], dtype=torch.float64)
    expected = [posterior, posterior**0.75 * beta**0.25, math.sqrt(posterior * beta), beta, beta**1.5 / posterior**0.5]
    assert model_log_variance(v, step).exp().flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_variance_channels_are_held_to_their_range():
    v = torch.tensor([-3.0, -1.0, 0.2, 1.0, 12.0])
    assert clamp_to_range(v).tolist() == pytest.approx([-1.0, -1.0, 0.2, 1.0, 1.0])
