"""Denoiser: what it makes of a UNet's output, against diffusers and a loop over pixels written out from the textbook."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from bayes_reference import FULL, LINEAR, RESPACED, exact_step, random_images, random_normal, scheduler_in_float64
from diffad.diffusion.denoiser import Denoiser
from diffusers import DDPMScheduler

TIMESTEPS = (0, 1, 20, 401)
SHAPE = (len(TIMESTEPS), 3, 5, 4)


class FixedUNet(torch.nn.Module):
    """Answers with the same output and features whatever it is asked, and keeps what it was asked."""

    def __init__(self, output: torch.Tensor, features: torch.Tensor | None = None):
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(1, dtype=output.dtype))
        self.output, self.features = output, torch.zeros(len(output), 1, 1, 1) if features is None else features
        self.asked: tuple | None = None

    def forward(self, sample, timesteps, category, return_dict):
        assert not return_dict
        self.asked = sample, timesteps, category
        return self.output, self.features


def make_scheduler(**config) -> DDPMScheduler:
    return DDPMScheduler(**{"variance_type": "learned_range", "timestep_spacing": "linspace", **config})


def grey_images(*shape: int) -> torch.Tensor:
    """Images on 8-bit grey levels."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1


def noise_and_outputs(*shape: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, a UNet's estimate of it, and its variance channels."""
    noise = random_normal(*shape, dtype=torch.float32)
    epsilon = noise + 0.3 * random_normal(*shape, seed=4, dtype=torch.float32)
    return noise, epsilon.to(dtype), random_images(*shape, seed=5, dtype=torch.float32).to(dtype)


# Reverse steps


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("num_steps", [1000, 250, 40])
def test_reverse_step_matches_diffusers(num_steps, prediction_type):
    scheduler = scheduler_in_float64(prediction_type=prediction_type)
    scheduler.set_timesteps(num_steps)
    output = torch.cat([random_normal(2, 3, 8, 8, seed=2), random_images(2, 3, 8, 8, seed=3)], dim=1)
    denoiser = Denoiser(FixedUNet(output), scheduler, num_steps)
    xt, noise = random_images(2, 3, 8, 8), random_normal(2, 3, 8, 8, seed=3)
    for timestep in scheduler.timesteps[[0, 3, num_steps // 2, -2]]:
        expected = scheduler.step(output, timestep, xt, torch.Generator().manual_seed(3))
        prediction, sample = denoiser(xt, timestep), denoiser.reverse_step(xt, timestep, noise=noise)
        torch.testing.assert_close(prediction.x0.double(), expected.pred_original_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sample.double(), expected.prev_sample, rtol=1e-5, atol=1e-5)


def test_reverse_step_without_noise_is_the_mean_and_noise_is_scaled_by_the_learned_deviation():
    noise, epsilon, v = noise_and_outputs(2, 3, 4, 4)
    denoiser = Denoiser(FixedUNet(torch.cat([epsilon, v], dim=1)), make_scheduler(), 250)
    step, xt = exact_step([201], RESPACED), random_images(2, 3, 4, 4)
    mean, sample = (denoiser.reverse_step(xt.float(), torch.tensor(201), noise=draw) for draw in (None, noise))
    x0 = ((xt - step.sqrt_one_minus_alpha_bar * epsilon) / step.sqrt_alpha_bar).clamp(-1, 1)
    torch.testing.assert_close(mean.double(), step.x0_coefficient * x0 + step.xt_coefficient * xt, rtol=1e-5, atol=1e-6)
    u = (v.double() + 1) / 2
    std = torch.exp((u * step.log_beta + (1 - u) * step.log_posterior_variance) / 2)
    torch.testing.assert_close((sample - mean).double(), std * noise, rtol=1e-4, atol=1e-6)


def test_last_reverse_step_ends_at_the_predicted_image():
    _, epsilon, v = noise_and_outputs(2, 3, 4, 4)
    denoiser = Denoiser(FixedUNet(torch.cat([epsilon, v], dim=1)), make_scheduler(), 250)
    xt = random_images(2, 3, 4, 4).float()
    torch.testing.assert_close(denoiser.reverse_step(xt, torch.tensor(0)), denoiser(xt, torch.tensor(0)).x0)


def test_noise_is_added_for_the_timestep_of_each_image_and_broadcasts_over_images():
    denoiser = Denoiser(FixedUNet(torch.zeros(1, 6, 1, 1)), make_scheduler())
    x0, noise, timesteps = random_images(3, 3, 4, 4).float(), random_normal(3, 4, 4).float(), torch.tensor([999, 0, 201])
    expected = DDPMScheduler().add_noise(x0, noise.expand(3, -1, -1, -1), timesteps)
    torch.testing.assert_close(denoiser.add_noise(x0, noise, timesteps), expected)


def test_variance_channels_beyond_their_range_are_clamped_in_predictions():
    output = torch.cat([torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 7.0)], dim=1)
    prediction = Denoiser(FixedUNet(output), make_scheduler())(torch.zeros(1, 3, 2, 2), torch.tensor(20))
    assert prediction.v.unique().tolist() == [1]


def test_kl_is_that_of_the_chain_the_denoiser_follows():
    x0, (_, epsilon, v) = random_images(1, 3, 4, 4).float(), noise_and_outputs(1, 3, 4, 4)
    unet = FixedUNet(torch.cat([epsilon, v], dim=1))
    of_chain = {}
    for num_steps, chain in ((250, RESPACED), (None, FULL)):
        denoiser = Denoiser(unet, make_scheduler(), num_steps)
        prediction, step = denoiser(x0, torch.tensor([201])), exact_step([201], chain)
        actual = denoiser.kl_divergence(x0, prediction, torch.tensor([201]))
        ratio = (prediction.v.double() + 1) / 2 * (step.log_beta - step.log_posterior_variance)
        squared = (step.x0_coefficient * (x0 - prediction.x0)).square() / torch.exp(step.log_posterior_variance + ratio)
        torch.testing.assert_close(
            actual.double(), (ratio - 1 + torch.exp(-ratio) + squared) / 2 / math.log(2), rtol=1e-4, atol=1e-6
        )
        of_chain[num_steps] = actual
    assert not torch.allclose(of_chain[250], of_chain[None])


def test_unet_is_asked_once_in_its_own_type_and_answers_in_float32():
    unet = FixedUNet(torch.zeros(2, 6, 4, 4, dtype=torch.bfloat16), torch.ones(2, 5, 2, 2, dtype=torch.bfloat16))
    category, timestep = torch.tensor([1]), torch.tensor([20])
    prediction = Denoiser(unet, make_scheduler())(torch.rand(2, 3, 4, 4), timestep, category)
    sample, asked_timestep, asked_category = unet.asked
    assert sample.dtype == torch.bfloat16 and asked_timestep is timestep and asked_category is category
    assert {values.dtype for values in prediction} == {torch.float32} and prediction.features.shape == (2, 5, 2, 2)


def test_category_for_all_images_may_be_a_number():
    unet = FixedUNet(torch.zeros(2, 6, 4, 4))
    Denoiser(unet, make_scheduler())(torch.rand(2, 3, 4, 4), torch.tensor([20]), 3)
    assert torch.equal(unet.asked[2], torch.tensor([3]))


def test_timestep_off_the_chain_is_never_silently_wrong():
    denoiser = Denoiser(FixedUNet(torch.zeros(1, 6, 4, 4)), make_scheduler(), 250)
    x = torch.zeros(1, 3, 4, 4)
    for timestep in (5, -1, 1000):
        for call in (
            lambda t: denoiser.add_noise(x, x, t),
            lambda t: denoiser(x, t),
            lambda t: denoiser.reverse_step(x, t),
            lambda t: denoiser.joint_loss(x, x, t, torch.zeros(1, 1, 1, 1)),
        ):
            with pytest.raises(IndexError):
                call(torch.tensor([timestep]))


# Training losses


def naive_vlb(x0: float, xt: float, epsilon: float, v: float, timestep: int) -> float:
    """One pixel's term in bits from the textbook formulas: means and variances spelled out, no shared factors."""
    betas = np.linspace(1e-4, 0.02, 1000)
    predicted = np.clip((xt - math.sqrt(1 - LINEAR[timestep]) * epsilon) / math.sqrt(LINEAR[timestep]), -1, 1)
    source = max(timestep, 1)
    log_min = math.log((1 - LINEAR[source - 1]) / (1 - LINEAR[source]) * betas[source])
    std = math.exp(0.5 * ((v + 1) / 2 * math.log(betas[timestep]) + (1 - v) / 2 * log_min))
    if timestep == 0:
        upper = math.inf if x0 > 0.999 else x0 + 1 / 255
        lower = -math.inf if x0 < -0.999 else x0 - 1 / 255
        mass = scipy.stats.norm.cdf(upper, predicted, std) - scipy.stats.norm.cdf(lower, predicted, std)
        return -math.log2(max(mass, 1e-30))
    previous = LINEAR[timestep - 1]
    means = [
        (math.sqrt(previous) * betas[timestep] * image + math.sqrt(1 - betas[timestep]) * (1 - previous) * xt)
        / (1 - LINEAR[timestep])
        for image in (x0, predicted)
    ]
    true = torch.distributions.Normal(*torch.tensor([means[0], math.exp(0.5 * log_min)], dtype=torch.float64))
    model = torch.distributions.Normal(*torch.tensor([means[1], std], dtype=torch.float64))
    return torch.distributions.kl_divergence(true, model).item() / math.log(2)


def make_joint_inputs(timesteps=TIMESTEPS, dtype=torch.float32, v_scale: float = 1.0):
    """A denoiser whose UNet answers with fixed channels, and the arguments of its losses."""
    shape = (len(timesteps), *SHAPE[1:])
    noise, epsilon, v = noise_and_outputs(*shape, dtype=dtype)
    target = random_normal(len(timesteps), 6, 2, 2, seed=6, dtype=torch.float32)
    unet = FixedUNet(torch.cat([epsilon, v_scale * v], dim=1), (target + 0.5).to(dtype))
    return Denoiser(unet, make_scheduler()), (grey_images(*shape), noise, torch.tensor(timesteps), target)


@pytest.mark.parametrize("timesteps", [TIMESTEPS, (20, 1, 999), (0, 0)])
def test_vlb_matches_a_naive_loop_over_the_pixels_of_each_image(timesteps):
    # Beyond their range, too: the loss does not clamp the variance channels, so that they find back.
    denoiser, inputs = make_joint_inputs(timesteps, v_scale=1.5)
    x0, noise = (values.double() for values in inputs[:2])
    step, (epsilon, v) = exact_step(timesteps), denoiser.unet.output.double().chunk(2, dim=1)
    xt = step.sqrt_alpha_bar * x0 + step.sqrt_one_minus_alpha_bar * noise
    pixels = np.empty(x0.shape)
    for index in np.ndindex(x0.shape):
        pixels[index] = naive_vlb(*(values[index].item() for values in (x0, xt, epsilon, v)), timesteps[index[0]])
    np.testing.assert_allclose(denoiser.joint_loss(*inputs).vlb, pixels.mean(axis=(1, 2, 3)), rtol=1e-3)


def test_losses_keep_the_batch_and_do_not_depend_on_neighbours():
    denoiser, inputs = make_joint_inputs()
    together = denoiser.joint_loss(*inputs)
    for i in range(len(TIMESTEPS)):
        unet = FixedUNet(denoiser.unet.output[i : i + 1], denoiser.unet.features[i : i + 1])
        alone = Denoiser(unet, make_scheduler()).joint_loss(*(values[i : i + 1] for values in inputs))
        for name in ("simple", "vlb", "feature"):
            assert getattr(together, name).shape == (len(TIMESTEPS),)
            assert getattr(alone, name).item() == pytest.approx(getattr(together, name)[i].item(), rel=1e-6)


@pytest.mark.parametrize("timesteps", [TIMESTEPS, (20, 401)])
def test_vlb_trains_the_variance_and_leaves_the_mean_alone(timesteps):
    denoiser, inputs = make_joint_inputs(timesteps)
    denoiser.unet.output.requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser.joint_loss(*inputs).vlb.sum(), denoiser.unet.output)
    assert not gradient[:, :3].any()
    assert all((of_image != 0).any() for of_image in gradient[:, 3:])


def test_vlb_rewards_the_right_variance():
    of_variance = []
    for value in (-1.0, 0.0, 1.0):
        denoiser, (x0, noise, timesteps, target) = make_joint_inputs((1, 20))
        denoiser.unet.output = torch.cat([noise, torch.full_like(noise, value)], dim=1)  # the right mean
        of_variance.append(denoiser.joint_loss(x0, noise, timesteps, target).vlb.mean().item())
    assert of_variance[0] == pytest.approx(0, abs=1e-6)
    assert of_variance[0] < of_variance[1] < of_variance[2]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_joint_loss_reads_the_prediction_first_then_the_variance_and_weighs_the_features(prediction_type):
    denoiser, (x0, noise, timesteps, target) = make_joint_inputs()
    denoiser = Denoiser(denoiser.unet, make_scheduler(prediction_type=prediction_type))
    loss = denoiser.joint_loss(x0, noise, timesteps, target, feature_weight=3.0)
    target = noise if prediction_type == "epsilon" else x0
    expected = (denoiser.unet.output[:, :3] - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss.simple, expected)
    assert loss.feature.tolist() == pytest.approx([0.25] * 4, rel=1e-5)
    assert loss.total.item() == pytest.approx(loss.simple.mean().item() + loss.vlb.mean().item() + 0.75, rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_joint_loss_of_corrupted_images_asks_for_the_clean_ones(prediction_type):
    denoiser, (x0, noise, timesteps, target) = make_joint_inputs((1, 20, 401, 700))
    step, corrupted = exact_step((1, 20, 401, 700)), x0.roll(1, dims=3)
    xt = step.sqrt_alpha_bar * corrupted.double() + step.sqrt_one_minus_alpha_bar * noise.double()
    to_clean = (xt - step.sqrt_alpha_bar * x0.double()) / step.sqrt_one_minus_alpha_bar
    right = to_clean.float() if prediction_type == "epsilon" else x0
    unet = FixedUNet(torch.cat([right, torch.full_like(right, -1.0)], dim=1), target)
    denoiser = Denoiser(unet, make_scheduler(prediction_type=prediction_type))
    loss = denoiser.joint_loss(x0, noise, timesteps, target, corrupted=corrupted)
    torch.testing.assert_close(unet.asked[0], xt.float(), rtol=1e-5, atol=1e-5)
    # A UNet that is right has no loss: neither of the image or noise, nor, with the least variance, of the reverse step
    for term in (loss.simple, loss.vlb, loss.feature):
        torch.testing.assert_close(term, torch.zeros(4), rtol=0, atol=1e-5)


def test_joint_loss_weighs_its_terms_equally_by_default():
    denoiser, inputs = make_joint_inputs()
    loss = denoiser.joint_loss(*inputs)
    assert loss.total.item() == pytest.approx((loss.simple + loss.vlb + loss.feature).mean().item(), rel=1e-6)


def test_joint_loss_gives_the_noise_channels_the_gradient_of_the_simple_loss_only():
    denoiser, (x0, noise, timesteps, target) = make_joint_inputs()
    output, features = denoiser.unet.output.requires_grad_(), denoiser.unet.features.requires_grad_()
    denoiser.joint_loss(x0, noise, timesteps, target, feature_weight=2.0).total.backward()
    expected = 2 * (output.detach()[:, :3] - noise) / noise.numel()
    torch.testing.assert_close(output.grad[:, :3], expected, rtol=1e-5, atol=1e-9)
    assert (output.grad[:, 3:] != 0).any()
    torch.testing.assert_close(features.grad, 2.0 * 2 * (features - target).detach() / target.numel())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_joint_loss_of_half_precision_outputs_is_computed_in_single_precision(dtype):
    denoiser, inputs = make_joint_inputs(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = denoiser.joint_loss(*inputs)
    single = Denoiser(FixedUNet(denoiser.unet.output.float(), denoiser.unet.features.float()), make_scheduler())
    expected = single.joint_loss(*inputs)
    for name in ("simple", "vlb", "feature", "total"):
        assert getattr(half, name).dtype == torch.float32
        torch.testing.assert_close(getattr(half, name), getattr(expected, name), rtol=1e-6, atol=0)


def test_joint_loss_passes_the_category_on():
    denoiser, inputs = make_joint_inputs()
    category = torch.tensor([1, 0, 2, 1])
    denoiser.joint_loss(*inputs, category=category)
    assert denoiser.unet.asked[2] is category
