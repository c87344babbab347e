"""Score terms: one formula each, against loops written out from the paper."""

import math

import numpy as np
import pytest
import torch
from bayes_reference import FULL, RESPACED, exact_step
from diffad.diffusion.losses import kl_divergence
from diffad.scoring.terms import (
    feature_error,
    feature_residual,
    image_score,
    mahalanobis_distance,
    pixel_score,
    rgb_error,
    standardize,
    standardize_per_image,
    weighted_sum,
)


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
    ("num_steps", "timestep", "predecessor"), [(250, 20, 16), (250, 201, 197), (250, 401, 397), (None, 1, 0), (None, 20, 19)]
)
def test_pixel_score_matches_a_naive_loop(num_steps, timestep, predecessor):
    step = exact_step([timestep], FULL if num_steps is None else RESPACED)
    x0, x0_predicted, xt, v = random_arrays(2, 3, 4, 5, count=4)
    expected = np.zeros((2, 4, 5))
    for b, c, h, w in np.ndindex(2, 3, 4, 5):
        pixel = (tensor[b, c, h, w].item() for tensor in (x0, x0_predicted, xt, v))
        expected[b, h, w] += kl_bits(*pixel, timestep, predecessor) / 3
    kl = kl_divergence(x0, x0_predicted, v, step.x0_coefficient, step.log_beta, step.log_posterior_variance)
    np.testing.assert_allclose(pixel_score(kl).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("score", "power"), [(rgb_error, 0.5), (feature_error, 1.0)])
def test_difference_maps_average_squares_over_channels_only(score, power):
    truth, predicted = random_arrays(2, 7, 4, 5, count=2)
    expected = np.zeros((2, 4, 5))
    for b, c, h, w in np.ndindex(2, 7, 4, 5):
        expected[b, h, w] += (truth[b, c, h, w].item() - predicted[b, c, h, w].item()) ** 2 / 7
    np.testing.assert_allclose(score(truth, predicted).numpy(), expected**power, rtol=1e-12)


def test_feature_residual_is_the_mean_error_over_the_timesteps():
    features, *predictions = random_arrays(2, 7, 4, 5, count=4)
    expected = np.mean([(features - predicted).numpy() for predicted in predictions], axis=0)
    np.testing.assert_allclose(feature_residual(features, predictions).numpy(), expected, rtol=1e-9, atol=1e-12)
    # Of one timestep, Eq. 10 is what is left when every channel weighs alike.
    residual = feature_residual(features, predictions[:1])
    torch.testing.assert_close(residual.square().mean(dim=1), feature_error(features, predictions[0]))


def test_mahalanobis_distance_is_the_root():
    assert mahalanobis_distance(torch.tensor([[[0.0, 9.0], [2.25, 100.0]]])).tolist() == [[[0.0, 3.0], [1.5, 10.0]]]


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


@pytest.mark.parametrize("top_k", [1, 3, 30])
def test_image_score_is_the_mean_of_each_images_highest_pixels(top_k):
    maps = torch.stack(random_arrays(6, 5, count=3)) - 5
    expected = [sum(sorted(m.flatten().tolist())[-top_k:]) / top_k for m in maps]
    assert image_score(maps, top_k).tolist() == pytest.approx(expected, rel=1e-9)


def test_image_score_is_the_maximum_by_default():
    assert image_score(torch.tensor([[[0.0, -2.0]], [[-7.0, -5.0]]])).tolist() == [0.0, -5.0]
