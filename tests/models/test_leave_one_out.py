"""Leave-one-out by down-dating gives what a fit without the image gives."""

import numpy as np
import pytest
import torch
from diffad import PadimGaussian
from diffad.models.leave_one_out import left_out_distances, left_out_distances_of_all_positions
from diffad.models.moments import StreamingMoments

N, SIDE, DIMS, REGULARIZATION = 9, 2, 5, 0.3


def vectors(seed: int = 0, n: int = N) -> torch.Tensor:
    """`(n, P, D)`, with means that are large against the spread and a direction in which nothing varies."""
    drawn = torch.randn(n, SIDE * SIDE, DIMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[..., 0] = 0
    return 50 + drawn @ torch.linspace(0.5, 2, DIMS * DIMS, dtype=torch.float64).view(DIMS, DIMS)


def refitted(samples: torch.Tensor, others: list[int], i: int, is_shared: bool = False) -> np.ndarray:
    """By numpy: fit on the others, distance of image i at every position."""
    rest = samples[others].numpy()
    distances = []
    for position in range(SIDE * SIDE):
        seen = rest.reshape(-1, DIMS) if is_shared else rest[:, position]
        covariance = np.cov(seen.T) + REGULARIZATION * np.eye(DIMS)
        deviation = samples[i, position].numpy() - seen.mean(axis=0)
        distances.append(deviation @ np.linalg.solve(covariance, deviation))
    return np.array(distances)


GROUPS = [None, [0, 1, 1, 2, 3, 3, 3, 4, 5]]
FITTED = [None, torch.tensor([True, True, False, True, True, False, True, True, True])]


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("is_fitted", FITTED)
def test_distances_are_those_of_a_fit_without_the_image_and_its_group(groups, is_fitted, is_shared):
    samples = vectors()
    function = left_out_distances_of_all_positions if is_shared else left_out_distances
    found = function(samples, REGULARIZATION, groups, is_fitted)
    names = list(range(N)) if groups is None else groups
    fitted = [i for i in range(N) if is_fitted is None or is_fitted[i]]
    for i in range(N):
        others = [j for j in fitted if i not in fitted or names[j] != names[i]]
        np.testing.assert_allclose(found[i], refitted(samples, others, i, is_shared), rtol=1e-9)


def test_it_is_the_distance_of_the_models_own_gaussian():
    samples = vectors(1).float()
    maps = samples.transpose(1, 2).reshape(N, DIMS, SIDE, SIDE)
    gaussian = PadimGaussian(DIMS, grid=(SIDE, SIDE), regularization=REGULARIZATION)
    moments = gaussian.new_moments()
    gaussian.accumulate(moments, maps[1:])
    expected = gaussian.fit(moments)(maps[:1]).flatten()
    torch.testing.assert_close(left_out_distances(samples, REGULARIZATION)[0].float(), expected, rtol=1e-4, atol=1e-4)


def test_fewer_images_than_dimensions_will_do():
    samples = vectors(2, n=4)
    found = left_out_distances(samples, REGULARIZATION)
    np.testing.assert_allclose(found[2], refitted(samples, [0, 1, 3], 2), rtol=1e-9)


@pytest.mark.parametrize("function", [left_out_distances, left_out_distances_of_all_positions])
def test_two_images_must_be_left(function):
    with pytest.raises(ValueError, match="2 must be"):
        function(vectors(n=3), REGULARIZATION, groups=[0, 0, 1])


def test_moments_are_taken_away_again():
    first, second = vectors(3), vectors(4)
    kept, both, part = (StreamingMoments(SIDE * SIDE, DIMS) for _ in range(3))
    kept.update(first)
    both.update(torch.cat([first, second]))
    part.update(second)
    rest = both.without(part)
    assert rest.count == N
    torch.testing.assert_close(rest.mean, kept.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(rest.covariance, kept.covariance, rtol=1e-9, atol=1e-9)
    assert both.without(both).count == 0
    with pytest.raises(ValueError, match="18 samples can't be taken away from 9"):
        part.without(both)
