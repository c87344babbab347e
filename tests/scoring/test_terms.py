import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from diffad.diffusion.chain import chain_step
from diffad.imaging.maps import resize_map, smooth_map
from diffad.scoring.terms import (
    feature_map,
    image_score,
    kl_map,
    rgb_error_map,
    standardize,
    standardize_per_image,
    weighted_sum,
)
from diffusers import DDPMScheduler
from PIL import Image


def random_arrays(*shape: int, count: int = 1, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, size=(count, *shape))))


def kl_bits(x0: float, x0_predicted: float, xt: float, v: float, timestep: int, predecessor: int) -> float:
    """The pixel score of one channel, term by term as in the paper."""
    alphas = 1 - np.linspace(1e-4, 0.02, 1000)
    abar, abar_prev = np.prod(alphas[: timestep + 1]), np.prod(alphas[: predecessor + 1])
    beta = 1 - abar / abar_prev
    beta_tilde = (1 - abar_prev) / (1 - abar) * beta
    u = (v + 1) / 2
    variance = math.exp(u * math.log(beta) + (1 - u) * math.log(beta_tilde))
    true_mean, model_mean = (
        (math.sqrt(abar_prev) * beta * image + math.sqrt(1 - beta) * (1 - abar_prev) * xt) / (1 - abar)
        for image in (x0, x0_predicted)
    )
    squared = (true_mean - model_mean) ** 2
    return 0.5 * (math.log(variance / beta_tilde) - 1 + beta_tilde / variance + squared / variance) / math.log(2)


@pytest.mark.parametrize(
    ("num_steps", "timestep", "predecessor"), [(250, 20, 16), (250, 201, 197), (250, 401, 397), (1000, 1, 0), (1000, 20, 19)]
)
def test_kl_map_matches_a_naive_loop(num_steps, timestep, predecessor):
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")
    scheduler.set_timesteps(num_steps)
    x0, x0_predicted, xt, v = random_arrays(2, 3, 4, 5, count=4)
    expected = np.zeros((2, 4, 5))
    for b, c, h, w in np.ndindex(2, 3, 4, 5):
        pixel = (tensor[b, c, h, w].item() for tensor in (x0, x0_predicted, xt, v))
        expected[b, h, w] += kl_bits(*pixel, timestep, predecessor) / 3
    result = kl_map(x0, x0_predicted, v, chain_step(scheduler, torch.tensor([timestep])))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("score", "power"), [(rgb_error_map, 0.5), (feature_map, 1.0)])
def test_difference_maps_average_squares_over_channels_only(score, power):
    truth, predicted = random_arrays(2, 7, 4, 5, count=2)
    expected = np.zeros((2, 4, 5))
    for b, c, h, w in np.ndindex(2, 7, 4, 5):
        expected[b, h, w] += (truth[b, c, h, w].item() - predicted[b, c, h, w].item()) ** 2 / 7
    np.testing.assert_allclose(score(truth, predicted).numpy(), expected**power, rtol=1e-12)


def test_standardize_uses_the_given_statistics():
    score_map = torch.tensor([[[1.0, 3.0], [5.0, -1.0]]])
    result = standardize(score_map, torch.tensor(3.0), torch.tensor(4.0))
    assert result.tolist() == [[[-0.5, 0.0], [0.5, -1.0]]]


def test_standardize_per_image_gives_every_image_its_own_mean_and_spread():
    maps = torch.stack(random_arrays(6, 5, count=3)) * torch.tensor([1.0, 10.0, 0.01]).view(3, 1, 1) + 7
    expected = [(image - image.mean()) / image.std(ddof=1) for image in maps.numpy()]
    np.testing.assert_allclose(standardize_per_image(maps).numpy(), expected, rtol=1e-9)


def test_weighted_sum_is_equation_11():
    kl, feature, unused = random_arrays(2, 4, 5, count=3)
    result = weighted_sum({"kl": kl, "feature": feature, "rgb": unused}, {"kl": 0.3, "feature": 0.7})
    torch.testing.assert_close(result, 0.3 * kl + 0.7 * feature)


def test_weighted_sum_refuses_a_term_without_a_map():
    with pytest.raises(KeyError, match="feature"):
        weighted_sum({"kl": torch.zeros(1, 2, 2)}, {"kl": 0.5, "feature": 0.5})


@pytest.mark.parametrize("size", [(12, 9), (64, 80), (7, 40)])
def test_resize_matches_pillow(size):
    maps = torch.stack(random_arrays(24, 20, count=2)).float()
    expected = [np.asarray(Image.fromarray(m.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)) for m in maps]
    np.testing.assert_allclose(resize_map(maps, size).numpy(), expected, atol=2e-6)


def test_resize_to_the_same_size_changes_nothing():
    score_map = torch.stack(random_arrays(6, 5))
    assert torch.equal(resize_map(score_map, (6, 5)), score_map)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 4.0])
def test_smoothing_matches_scipy(sigma):
    maps = torch.stack(random_arrays(20, 31, count=2)) * 100
    expected = [scipy.ndimage.gaussian_filter(m, sigma, mode="mirror", truncate=3.0) for m in maps.numpy()]
    np.testing.assert_allclose(smooth_map(maps, sigma).numpy(), expected, rtol=1e-6, atol=1e-9)


def test_smoothing_of_a_small_map_cuts_the_kernel_at_its_shorter_side():
    maps = torch.stack(random_arrays(5, 9, count=2))
    expected = [scipy.ndimage.gaussian_filter(m, 4.0, mode="mirror", radius=4) for m in maps.numpy()]
    np.testing.assert_allclose(smooth_map(maps, 4.0).numpy(), expected, rtol=1e-6)


def test_smoothing_keeps_a_constant_and_spreads_a_peak_evenly():
    constant = torch.full((1, 16, 16), -3.0)
    torch.testing.assert_close(smooth_map(constant, 4.0), constant)
    peak = torch.zeros(1, 41, 41)
    peak[0, 20, 20] = 1
    smooth = smooth_map(peak, 2.0)[0]
    assert smooth.sum().item() == pytest.approx(1, rel=1e-5)
    assert smooth[20, 22].item() == pytest.approx(smooth[22, 20].item(), rel=1e-6)
    assert (smooth[20, 22] / smooth[20, 20]).item() == pytest.approx(math.exp(-0.5), rel=1e-5)


def test_zero_sigma_changes_nothing():
    score_map = torch.stack(random_arrays(6, 5))
    assert torch.equal(smooth_map(score_map, 0), score_map)


@pytest.mark.parametrize("top_k", [1, 3, 30])
def test_image_score_is_the_mean_of_each_images_highest_pixels(top_k):
    maps = torch.stack(random_arrays(6, 5, count=3)) - 5
    expected = [sum(sorted(m.flatten().tolist())[-top_k:]) / top_k for m in maps]
    assert image_score(maps, top_k).tolist() == pytest.approx(expected, rel=1e-9)


def test_image_score_is_the_maximum_by_default():
    assert image_score(torch.tensor([[[0.0, -2.0]], [[-7.0, -5.0]]])).tolist() == [0.0, -5.0]
