"""Training losses as formulas: KL in bits and the likelihood of grey levels, against torch, scipy and numeric integration."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from bayes_reference import FULL, RESPACED, bayes_posterior, exact_step, random_images, random_normal
from diffad.diffusion import losses
from diffad.diffusion.losses import JointLoss, discretized_nll, per_image, squared_error
from diffad.diffusion.reverse_step import ReverseStep, model_log_variance, posterior_mean


def kl_divergence(x0, x0_predicted, v, step: ReverseStep) -> torch.Tensor:
    constants = (step.x0_coefficient, step.log_beta, step.log_posterior_variance)
    return losses.kl_divergence(x0, x0_predicted, v, *(constant.to(x0) for constant in constants))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 7, 2, 2)])
def test_squared_error_is_the_mean_over_every_element_of_each_image(shape):
    prediction, target = np.random.default_rng(0).normal(size=(2, *shape))
    expected = [np.mean([(p - t) ** 2 for p, t in zip(a.ravel(), b.ravel())]) for a, b in zip(prediction, target)]
    assert squared_error(torch.from_numpy(prediction), torch.from_numpy(target)).tolist() == pytest.approx(expected, rel=1e-9)


def test_per_image_is_the_mean_of_each_image():
    values = random_images(3, 2, 4, 5)
    assert per_image(values).tolist() == pytest.approx([image.numpy().mean() for image in values], rel=1e-12)


def test_total_is_the_batch_mean_of_the_weighted_sum():
    loss = JointLoss(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]), torch.tensor([100.0, 200.0]), feature_weight=0.5)
    assert loss.total.item() == 1.5 + 15 + 75
    assert JointLoss(loss.simple, loss.vlb, loss.feature).total.item() == 1.5 + 15 + 150


# KL divergence


@pytest.mark.parametrize(("chain", "timestep", "predecessor"), [(FULL, 1, 0), (RESPACED, 20, 16), (RESPACED, 401, 397)])
def test_kl_matches_torch_distributions_in_bits(chain, timestep, predecessor):
    x0, x0_predicted, v = random_images(2, 3, 8, 8), random_images(2, 3, 8, 8, seed=1), random_images(2, 3, 8, 8, seed=2) * 1.5
    xt = random_normal(2, 3, 8, 8)
    true_mean, true_variance = bayes_posterior(x0, xt, timestep, predecessor)
    model_mean, _ = bayes_posterior(x0_predicted, xt, timestep, predecessor)
    alphas = 1 - np.linspace(1e-4, 0.02, 1000)
    u = (v + 1) / 2
    model_variance = (1 - np.prod(alphas[predecessor + 1 : timestep + 1])) ** u * true_variance ** (1 - u)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(true_mean, math.sqrt(true_variance)),
        torch.distributions.Normal(model_mean, model_variance.sqrt()),
    ) / math.log(2)
    actual = kl_divergence(x0, x0_predicted, v, exact_step([timestep], chain))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_kl_matches_numeric_integration():
    step = exact_step([20], RESPACED)
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
    step = exact_step([1, 20, 999])
    assert torch.equal(kl_divergence(x0, x0, -torch.ones_like(x0), step), torch.zeros_like(x0))
    assert (kl_divergence(x0, x0, torch.ones_like(x0), step)[:2] > 0).all()


@pytest.mark.parametrize("timestep", [1, 2, 20, 201])
def test_single_precision_kl_of_a_tiny_error_keeps_its_digits(timestep):
    x0, v = random_images(1, 3, 16, 16, dtype=torch.float32), -torch.ones(1, 3, 16, 16)
    x0_predicted = x0 + 1e-4 * random_normal(1, 3, 16, 16, dtype=torch.float32)
    step = exact_step([timestep])
    single = kl_divergence(x0, x0_predicted, v, step)
    double = kl_divergence(x0.double(), x0_predicted.double(), v.double(), step)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


@pytest.mark.parametrize("timestep", [20, 201, 401])
def test_single_precision_kl_of_typical_predictions_is_accurate(timestep):
    x0, v = random_images(1, 3, 16, 16, dtype=torch.float32), random_images(1, 3, 16, 16, seed=2, dtype=torch.float32)
    x0_predicted = (x0 + 0.05 * random_normal(1, 3, 16, 16, dtype=torch.float32)).clamp(-1, 1)
    step = exact_step([timestep], RESPACED)
    single = kl_divergence(x0, x0_predicted, v, step)
    double = kl_divergence(x0.double(), x0_predicted.double(), v.double(), step)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-8)


def test_kl_gradient_reaches_prediction_and_variance():
    x0, step = random_images(2, 3, 2, 2), exact_step([1, 401])
    inputs = [random_images(2, 3, 2, 2, seed=seed).requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(lambda x0_predicted, v: kl_divergence(x0, x0_predicted, v, step), inputs)


# Likelihood of 8-bit images


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
