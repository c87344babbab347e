import math

import numpy as np
import pytest
import scipy.stats
import torch
from diffad.diffusion.chain import chain_step
from diffad.diffusion.losses import feature_loss, joint_loss, simple_loss, vlb_loss
from diffad.diffusion.reverse_step import add_noise
from diffusers import DDPMScheduler

TIMESTEPS = (0, 1, 20, 401)


def random_batch(dtype=torch.float64, timesteps=TIMESTEPS):
    """Images on 8-bit grey levels with their noise, predictions and step constants."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(timesteps), 3, 5, 4)
    x0 = torch.randint(0, 256, shape, generator=generator).to(dtype) / 127.5 - 1
    noise = torch.randn(shape, generator=generator, dtype=dtype)
    epsilon = noise + 0.3 * torch.randn(shape, generator=generator, dtype=dtype)
    v = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    step = chain_step(DDPMScheduler(variance_type="learned_range"), torch.tensor(timesteps)).to(x0)
    return x0, add_noise(x0, noise, step), noise, epsilon, v, step


def naive_vlb(x0: float, xt: float, epsilon: float, v: float, timestep: int) -> float:
    """One pixel's term in bits from the textbook formulas: means and variances spelled out, no shared factors."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    predicted = np.clip((xt - math.sqrt(1 - alpha_bar[timestep]) * epsilon) / math.sqrt(alpha_bar[timestep]), -1, 1)
    source = max(timestep, 1)
    log_min = math.log((1 - alpha_bar[source - 1]) / (1 - alpha_bar[source]) * betas[source])
    std = math.exp(0.5 * ((v + 1) / 2 * math.log(betas[timestep]) + (1 - v) / 2 * log_min))
    if timestep == 0:
        upper = math.inf if x0 > 0.999 else x0 + 1 / 255
        lower = -math.inf if x0 < -0.999 else x0 - 1 / 255
        mass = scipy.stats.norm.cdf(upper, predicted, std) - scipy.stats.norm.cdf(lower, predicted, std)
        return -math.log2(max(mass, 1e-12))
    previous = alpha_bar[timestep - 1]
    means = [
        (math.sqrt(previous) * betas[timestep] * image + math.sqrt(1 - betas[timestep]) * (1 - previous) * xt)
        / (1 - alpha_bar[timestep])
        for image in (x0, predicted)
    ]
    true = torch.distributions.Normal(*torch.tensor([means[0], math.exp(0.5 * log_min)], dtype=torch.float64))
    model = torch.distributions.Normal(*torch.tensor([means[1], std], dtype=torch.float64))
    return torch.distributions.kl_divergence(true, model).item() / math.log(2)


@pytest.mark.parametrize("loss", [simple_loss, feature_loss])
def test_squared_error_losses_are_means_over_every_element(loss):
    prediction, target = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2))
    expected = sum((p - t) ** 2 for p, t in zip(prediction.ravel(), target.ravel())) / prediction.size
    assert loss(torch.from_numpy(prediction), torch.from_numpy(target)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("timesteps", [TIMESTEPS, (20, 1, 999), (0, 0)])
def test_vlb_matches_a_naive_loop_over_pixels(timesteps):
    x0, xt, _, epsilon, v, step = random_batch(timesteps=timesteps)
    terms = [
        naive_vlb(*(tensor[index].item() for tensor in (x0, xt, epsilon, v)), timesteps[index[0]])
        for index in np.ndindex(x0.shape)
    ]
    assert vlb_loss(x0, xt, epsilon, v, step).item() == pytest.approx(np.mean(terms), rel=1e-6)


def test_single_precision_vlb_is_close_to_double():
    x0, xt, _, epsilon, v, step = random_batch(torch.float32)
    single = vlb_loss(x0, xt, epsilon, v, step)
    double = vlb_loss(x0.double(), xt.double(), epsilon.double(), v.double(), step.to(x0.double()))
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), rel=1e-4)


@pytest.mark.parametrize("timesteps", [TIMESTEPS, (20, 401)])
def test_vlb_trains_the_variance_and_leaves_the_mean_alone(timesteps):
    x0, xt, _, epsilon, v, step = random_batch(timesteps=timesteps)
    epsilon.requires_grad_()
    v.requires_grad_()
    loss = vlb_loss(x0, xt, epsilon, v, step)
    epsilon_grad, v_grad = torch.autograd.grad(loss, (epsilon, v), allow_unused=True)
    assert epsilon_grad is None
    assert all((entry != 0).any() for entry in v_grad)
    assert torch.autograd.gradcheck(lambda variance: vlb_loss(x0, xt, epsilon.detach(), variance, step), v)


def test_vlb_rewards_the_right_variance():
    x0, xt, noise, _, v, step = random_batch(timesteps=(1, 20))
    losses = [vlb_loss(x0, xt, noise, torch.full_like(v, value), step).item() for value in (-1.0, 0.0, 1.0)]
    assert losses[0] == pytest.approx(0, abs=1e-12)
    assert losses[0] < losses[1] < losses[2]


def make_joint_inputs(model_dtype=torch.float32):
    x0, xt, noise, epsilon, v, step = random_batch(torch.float32)
    target = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(1))
    output = torch.cat([epsilon, v], dim=1).to(model_dtype)
    return x0, xt, noise, target, output, (target + 0.5).to(model_dtype), step


def test_joint_loss_reads_noise_first_then_variance_and_weighs_the_features():
    x0, xt, noise, target, output, predicted, step = make_joint_inputs()
    epsilon, v = output[:, :3], output[:, 3:]
    loss = joint_loss(x0, xt, noise, target, output, predicted, step, feature_weight=3.0)
    assert loss.simple.item() == pytest.approx((epsilon - noise).square().mean().item(), rel=1e-6)
    assert loss.vlb.item() == pytest.approx(vlb_loss(x0, xt, epsilon, v, step).item(), rel=1e-6)
    assert loss.feature.item() == pytest.approx(0.25, rel=1e-5)
    assert loss.total.item() == pytest.approx(loss.simple.item() + loss.vlb.item() + 0.75, rel=1e-5)


def test_joint_loss_weighs_its_terms_equally_by_default():
    loss = joint_loss(*make_joint_inputs())
    assert loss.total.item() == pytest.approx(loss.simple.item() + loss.vlb.item() + loss.feature.item(), rel=1e-6)


def test_joint_loss_gives_the_noise_channels_the_gradient_of_the_simple_loss_only():
    x0, xt, noise, target, output, predicted, step = make_joint_inputs()
    output.requires_grad_()
    predicted.requires_grad_()
    joint_loss(x0, xt, noise, target, output, predicted, step, feature_weight=2.0).total.backward()
    expected = 2 * (output.detach()[:, :3] - noise) / noise.numel()
    torch.testing.assert_close(output.grad[:, :3], expected, rtol=1e-5, atol=1e-9)
    assert (output.grad[:, 3:] != 0).any()
    torch.testing.assert_close(predicted.grad, 2.0 * 2 * (predicted - target).detach() / target.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_joint_loss_of_half_precision_outputs_is_computed_in_single_precision(dtype):
    inputs = list(make_joint_inputs(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = joint_loss(*inputs)
    inputs[4], inputs[5] = inputs[4].float(), inputs[5].float()
    single = joint_loss(*inputs)
    for name in ("simple", "vlb", "feature", "total"):
        assert getattr(half, name).dtype == torch.float32
        assert getattr(half, name).item() == pytest.approx(getattr(single, name).item(), rel=1e-6)
