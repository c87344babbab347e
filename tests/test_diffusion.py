import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from diffad.diffusion.chain import chain_step
from diffad.diffusion.losses import discretized_nll, kl_divergence
from diffad.diffusion.reverse_step import add_noise, clamp_to_range, model_log_variance, posterior_mean, predict_x0
from diffusers import DDPMScheduler

RESPACED = 250


def make_scheduler(num_steps: int | None = None, **config) -> DDPMScheduler:
    scheduler = DDPMScheduler(**{"variance_type": "learned_range", "timestep_spacing": "linspace", **config})
    if num_steps is not None:
        scheduler.set_timesteps(num_steps)
    return scheduler


def in_float64(scheduler: DDPMScheduler) -> DDPMScheduler:
    """Lets diffusers' own arithmetic run in double precision."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def alpha_bars(timestep: int, predecessor: int | None) -> tuple[float, float]:
    """abar of the step and of its predecessor (None is the clean image), as exact products of the linear betas."""
    alphas = 1 - np.linspace(1e-4, 0.02, 1000)
    return np.prod(alphas[: timestep + 1]), 1.0 if predecessor is None else np.prod(alphas[: predecessor + 1])


def bayes_posterior(x0, xt, timestep: int, predecessor: int):
    """Mean and variance of q(x_s | x_t, x_0) as the product of the Gaussians q(x_s | x_0) and q(x_t | x_s)."""
    abar_t, abar_s = alpha_bars(timestep, predecessor)
    alpha = abar_t / abar_s
    precision = 1 / (1 - abar_s) + alpha / (1 - alpha)
    mean = (math.sqrt(abar_s) * x0 / (1 - abar_s) + math.sqrt(alpha) * xt / (1 - alpha)) / precision
    return mean, 1 / precision


def random_images(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def random_normal(*shape: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("timestep", "noise_std"), [(20, 0.079), (201, 0.589), (401, 0.899)])
def test_paper_timesteps_are_in_the_respaced_chain(timestep, noise_std):
    step = chain_step(make_scheduler(RESPACED), torch.tensor([timestep]))
    assert step.sqrt_one_minus_alpha_bar.item() == pytest.approx(noise_std, abs=5e-4)


def test_paper_timesteps_are_steps_5_50_100_of_the_respaced_chain():
    assert make_scheduler(RESPACED).timesteps.flip(0)[[5, 50, 100]].tolist() == [20, 201, 401]


@pytest.mark.parametrize(("num_steps", "timestep"), [(RESPACED, 5), (RESPACED, 1000), (None, 1000), (None, -1)])
def test_timestep_outside_the_chain_is_refused_by_name(num_steps, timestep):
    with pytest.raises(ValueError, match=rf"\[{timestep}\] are not in the chain"):
        chain_step(make_scheduler(num_steps), torch.tensor([0, timestep]))


@pytest.mark.parametrize(
    ("num_steps", "timestep", "predecessor"),
    [(None, 1, 0), (None, 20, 19), (None, 999, 998), (RESPACED, 20, 16), (RESPACED, 201, 197), (RESPACED, 401, 397)],
)
def test_constants_match_bayes_rule_on_the_linear_schedule(num_steps, timestep, predecessor):
    step = chain_step(make_scheduler(num_steps), torch.tensor([timestep]))
    abar_t, abar_s = alpha_bars(timestep, predecessor)
    close = {"rel": 1e-6, "abs": 0}
    assert step.sqrt_alpha_bar.item() == pytest.approx(math.sqrt(abar_t), **close)
    assert step.sqrt_one_minus_alpha_bar.item() == pytest.approx(math.sqrt(1 - abar_t), **close)
    assert step.x0_coefficient.item() == pytest.approx(bayes_posterior(1, 0, timestep, predecessor)[0], **close)
    assert step.xt_coefficient.item() == pytest.approx(bayes_posterior(0, 1, timestep, predecessor)[0], **close)
    assert step.log_beta.exp().item() == pytest.approx(1 - abar_t / abar_s, **close)
    assert step.log_posterior_variance.exp().item() == pytest.approx(bayes_posterior(0, 0, timestep, predecessor)[1], **close)
    assert not step.is_first.item()


@pytest.mark.parametrize("num_steps", [None, RESPACED])
def test_first_step_returns_the_predicted_image_and_borrows_the_next_variance(num_steps):
    scheduler = make_scheduler(num_steps)
    second_timestep = int(scheduler.timesteps[-2])
    first, second = (chain_step(scheduler, torch.tensor([t])) for t in (0, second_timestep))
    assert first.is_first.item()
    assert (first.x0_coefficient.item(), first.xt_coefficient.item()) == (pytest.approx(1, abs=1e-12), 0)
    assert first.log_beta.exp().item() == pytest.approx(1e-4, rel=1e-6)
    assert first.log_posterior_variance.item() == second.log_posterior_variance.item()
    assert first.log_posterior_variance.exp().item() == pytest.approx(bayes_posterior(0, 0, second_timestep, 0)[1], rel=1e-6)


def test_each_batch_entry_gets_the_constants_of_its_own_timestep():
    scheduler = make_scheduler()
    timesteps = torch.tensor([401, 0, 999, 20, 401])
    together = chain_step(scheduler, timesteps)
    for name in ("sqrt_alpha_bar", "x0_coefficient", "log_beta", "log_posterior_variance", "is_first"):
        assert getattr(together, name).shape == (5, 1, 1, 1)
        alone = [getattr(chain_step(scheduler, t[None]), name).item() for t in timesteps]
        assert getattr(together, name).flatten().tolist() == alone


def test_constants_are_double_until_they_are_sent_to_the_images_type():
    step = chain_step(make_scheduler(), torch.tensor([0, 20]))
    single = step.to(torch.zeros(1))
    assert step.log_beta.dtype == torch.float64
    assert single.log_beta.dtype == torch.float32
    assert single.is_first.tolist() == step.is_first.tolist() and single.is_first.dtype == torch.bool
    assert torch.equal(single.x0_coefficient, step.x0_coefficient.float())


def test_chain_step_ignores_the_default_device():
    scheduler, timesteps = make_scheduler(), torch.tensor([20])
    with torch.device("meta"):
        step = chain_step(scheduler, timesteps)
    assert step.x0_coefficient.device.type == "cpu"


@pytest.mark.parametrize(
    ("num_steps", "config"),
    [
        (None, {}),
        (RESPACED, {}),
        (50, {"timestep_spacing": "leading", "steps_offset": 1}),
        (10, {"timestep_spacing": "trailing"}),
        (40, {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_reverse_step_matches_diffusers_ancestral_sampling(num_steps, config):
    scheduler = in_float64(make_scheduler(num_steps, **config))
    epsilon, v = random_normal(2, 3, 4, 4, seed=1), random_images(2, 3, 4, 4, seed=2)
    for index in (0, 3, len(scheduler.timesteps) // 2, -2):
        timestep = scheduler.timesteps[index]
        step = chain_step(scheduler, timestep[None])
        xt = add_noise(random_images(2, 3, 4, 4), epsilon, step)
        expected = scheduler.step(torch.cat([epsilon + 0.1, v], dim=1), timestep, xt, torch.Generator().manual_seed(3))

        x0 = predict_x0(xt, epsilon + 0.1, step)
        std = torch.exp(0.5 * model_log_variance(v, step))
        sampled = posterior_mean(x0, xt, step) + std * random_normal(2, 3, 4, 4, seed=3)
        torch.testing.assert_close(x0, expected.pred_original_sample, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sampled, expected.prev_sample, rtol=1e-6, atol=1e-9)


def test_add_noise_matches_diffusers_for_a_batch_of_timesteps():
    scheduler = in_float64(make_scheduler())
    x0, noise, timesteps = random_images(3, 3, 4, 4), random_normal(3, 3, 4, 4), torch.tensor([999, 0, 201])
    noisy = add_noise(x0, noise, chain_step(scheduler, timesteps))
    torch.testing.assert_close(noisy, scheduler.add_noise(x0, noise, timesteps), rtol=1e-9, atol=1e-12)


def test_predict_x0_inverts_add_noise_and_stays_in_the_image_range():
    step = chain_step(make_scheduler(), torch.tensor([1, 401]))
    x0, noise = random_images(2, 3, 4, 4), random_normal(2, 3, 4, 4)
    noisy = add_noise(x0, noise, step)
    torch.testing.assert_close(predict_x0(noisy, noise, step), x0, rtol=0, atol=1e-12)
    assert predict_x0(noisy, noise - 500, step).unique().tolist() == [1]
    assert predict_x0(noisy, noise + 500, step).unique().tolist() == [-1]


@pytest.mark.parametrize(("num_steps", "timestep", "predecessor"), [(None, 20, 19), (RESPACED, 20, 16), (RESPACED, 401, 397)])
def test_variance_runs_from_posterior_variance_to_beta_in_log_space(num_steps, timestep, predecessor):
    step = chain_step(make_scheduler(num_steps), torch.tensor([timestep]))
    abar_t, abar_s = alpha_bars(timestep, predecessor)
    beta, posterior = 1 - abar_t / abar_s, bayes_posterior(0, 0, timestep, predecessor)[1]
    v = torch.tensor([-1.0, -0.5, 0.0, 1.0, 2.0], dtype=torch.float64)
    expected = [posterior, posterior**0.75 * beta**0.25, math.sqrt(posterior * beta), beta, beta**1.5 / posterior**0.5]
    assert model_log_variance(v, step).exp().flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("num_steps", "timestep", "predecessor"), [(None, 1, 0), (RESPACED, 20, 16), (RESPACED, 401, 397)])
def test_kl_matches_torch_distributions_in_bits(num_steps, timestep, predecessor):
    step = chain_step(make_scheduler(num_steps), torch.tensor([timestep]))
    x0, x0_predicted, v = random_images(2, 3, 8, 8), random_images(2, 3, 8, 8, seed=1), random_images(2, 3, 8, 8, seed=2) * 1.5
    xt = random_normal(2, 3, 8, 8)

    abar_t, abar_s = alpha_bars(timestep, predecessor)
    true_mean, true_variance = bayes_posterior(x0, xt, timestep, predecessor)
    model_mean, _ = bayes_posterior(x0_predicted, xt, timestep, predecessor)
    u = (v + 1) / 2
    model_variance = (1 - abar_t / abar_s) ** u * true_variance ** (1 - u)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(true_mean, math.sqrt(true_variance)),
        torch.distributions.Normal(model_mean, model_variance.sqrt()),
    ) / math.log(2)
    torch.testing.assert_close(kl_divergence(x0, x0_predicted, v, step), expected, rtol=1e-6, atol=0)


def test_kl_matches_numeric_integration():
    step = chain_step(make_scheduler(RESPACED), torch.tensor([20]))
    x0, x0_predicted, v, xt = (torch.tensor(value, dtype=torch.float64) for value in (0.3, 0.25, 0.4, 0.35))
    q = scipy.stats.norm(posterior_mean(x0, xt, step).item(), step.log_posterior_variance.mul(0.5).exp().item())
    p = scipy.stats.norm(posterior_mean(x0_predicted, xt, step).item(), model_log_variance(v, step).mul(0.5).exp().item())
    integral, _ = scipy.integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)) / math.log(2), q.mean() - 12 * q.std(), q.mean() + 12 * q.std()
    )
    assert kl_divergence(x0, x0_predicted, v, step).item() == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_zero_exactly_when_the_reverse_steps_agree(dtype):
    x0 = random_images(3, 3, 4, 4, dtype=dtype)
    step = chain_step(make_scheduler(), torch.tensor([1, 20, 999])).to(x0)
    assert torch.equal(kl_divergence(x0, x0, -torch.ones_like(x0), step), torch.zeros_like(x0))
    assert (kl_divergence(x0, x0, torch.ones_like(x0), step)[:2] > 0).all()


@pytest.mark.parametrize("timestep", [1, 2, 20, 201])
def test_single_precision_kl_of_a_tiny_error_keeps_its_digits(timestep):
    x0, v = random_images(1, 3, 16, 16, dtype=torch.float32), -torch.ones(1, 3, 16, 16)
    x0_predicted = x0 + 1e-4 * random_normal(1, 3, 16, 16, dtype=torch.float32)
    step = chain_step(make_scheduler(), torch.tensor([timestep]))
    single = kl_divergence(x0, x0_predicted, v, step.to(x0))
    double = kl_divergence(x0.double(), x0_predicted.double(), v.double(), step)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


@pytest.mark.parametrize("timestep", [20, 201, 401])
def test_single_precision_kl_of_typical_predictions_is_accurate(timestep):
    x0, v = random_images(1, 3, 16, 16, dtype=torch.float32), random_images(1, 3, 16, 16, seed=2, dtype=torch.float32)
    x0_predicted = (x0 + 0.05 * random_normal(1, 3, 16, 16, dtype=torch.float32)).clamp(-1, 1)
    step = chain_step(make_scheduler(RESPACED), torch.tensor([timestep]))
    single = kl_divergence(x0, x0_predicted, v, step.to(x0))
    double = kl_divergence(x0.double(), x0_predicted.double(), v.double(), step)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-8)


def grey_levels(dtype=torch.float64) -> torch.Tensor:
    return torch.arange(256, dtype=dtype) / 127.5 - 1


@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.501, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 3.0])
def test_nll_is_a_probability_over_the_grey_levels(mean, std):
    nll = discretized_nll(grey_levels(), torch.tensor(mean), torch.tensor(2 * math.log(std), dtype=torch.float64))
    assert torch.exp2(-nll).sum().item() == pytest.approx(1, abs=1e-9)


def test_nll_matches_scipy_bin_masses_in_bits():
    mean, std = 0.1234, 0.2
    edges = np.concatenate([[-np.inf], np.linspace(-1 + 1 / 255, 1 - 1 / 255, 255), [np.inf]])
    expected = -np.log2(np.diff(scipy.stats.norm.cdf(edges, mean, std)))
    nll = discretized_nll(grey_levels(), torch.tensor(mean).double(), torch.tensor(2 * math.log(std)).double())
    np.testing.assert_allclose(nll.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("deviations", [0, 2, 4, 6, 7])
def test_single_precision_nll_is_accurate_in_both_tails(deviations, side):
    std = 0.0075  # about that of the first reverse step
    half_bin = 1 / 255 / std
    mass = scipy.stats.norm.cdf(half_bin - deviations) - scipy.stats.norm.cdf(-half_bin - deviations)
    x0, log_variance = torch.tensor(128 / 127.5 - 1), torch.tensor(2 * math.log(std))
    nll = discretized_nll(x0, x0 - side * deviations * std, log_variance)
    assert nll.item() == pytest.approx(-math.log2(mass), rel=1e-3)


def test_nll_gradient_reaches_mean_and_variance_and_is_finite_at_the_extremes():
    x0 = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    mean = torch.tensor([-0.9, 0.1, -0.8], dtype=torch.float64, requires_grad=True)
    log_variance = torch.full((3,), -3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, s: discretized_nll(x0, m, s), (mean, log_variance))


def test_variance_channels_are_held_to_their_range():
    v = torch.tensor([-3.0, -1.0, 0.2, 1.0, 12.0])
    assert clamp_to_range(v).tolist() == pytest.approx([-1.0, -1.0, 0.2, 1.0, 1.0])
