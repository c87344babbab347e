import numpy as np
import pytest
import torch
from diffad.models.moments import StreamingMoments
from sklearn.covariance import EmpiricalCovariance

POSITIONS, DIMS = 3, 4


def correlated_samples(count: int, seed: int = 0) -> np.ndarray:
    """`(count, positions, dims)` with another mean and covariance at every position."""
    rng = np.random.default_rng(seed)
    mixing, mean = rng.normal(size=(POSITIONS, DIMS, DIMS)), rng.normal(size=(POSITIONS, DIMS))
    return np.einsum("pij,npj->npi", mixing, rng.normal(size=(count, POSITIONS, DIMS))) + mean


def accumulate(*batches: np.ndarray) -> StreamingMoments:
    moments = StreamingMoments(POSITIONS, DIMS)
    for batch in batches:
        moments.update(torch.from_numpy(batch))
    return moments


def assert_same(moments: StreamingMoments, other: StreamingMoments) -> None:
    assert moments.count == other.count
    torch.testing.assert_close(moments.mean, other.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(moments.covariance, other.covariance, rtol=1e-10, atol=1e-12)


def test_mean_and_unbiased_covariance_match_sklearn_at_every_position():
    samples = correlated_samples(20)
    moments = accumulate(samples)
    assert moments.count == 20
    for position in range(POSITIONS):
        reference = EmpiricalCovariance().fit(samples[:, position])
        np.testing.assert_allclose(moments.mean[position], reference.location_, rtol=1e-10)
        np.testing.assert_allclose(moments.covariance[position], reference.covariance_ * 20 / 19, rtol=1e-10)


@pytest.mark.parametrize("cuts", [[1], [19], [5, 6, 13], list(range(1, 20))])
def test_batches_of_any_size_give_the_same_as_all_at_once(cuts):
    samples = correlated_samples(20)
    assert_same(accumulate(*np.split(samples, cuts)), accumulate(samples))


@pytest.mark.parametrize("first", [0, 1, 7, 20])
def test_merging_two_accumulators_gives_the_same_as_all_at_once(first):
    samples = correlated_samples(20)
    left = accumulate(samples[:first]) if first else StreamingMoments(POSITIONS, DIMS)
    right = accumulate(samples[first:]) if first < 20 else StreamingMoments(POSITIONS, DIMS)
    left.merge(right)
    assert_same(left, accumulate(samples))


def test_merge_leaves_the_other_accumulator_alone():
    other = accumulate(correlated_samples(5))
    accumulate(correlated_samples(7, seed=1)).merge(other)
    assert_same(other, accumulate(correlated_samples(5)))


def test_empty_batch_changes_nothing():
    samples = correlated_samples(10)
    assert_same(accumulate(samples, samples[:0]), accumulate(samples))


def test_large_mean_does_not_cancel_the_covariance():
    samples = correlated_samples(200)
    shifted = accumulate(*np.split(samples + 1e7, 10))
    expected = [np.cov(samples[:, position], rowvar=False) for position in range(POSITIONS)]
    np.testing.assert_allclose(shifted.covariance, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_samples_are_accumulated_in_double(dtype):
    samples = torch.from_numpy(correlated_samples(50)).add(30).to(dtype)
    moments = StreamingMoments(POSITIONS, DIMS)
    for batch in samples.split(7):
        moments.update(batch)
    assert_same(moments, accumulate(samples.double().numpy()))


@pytest.mark.parametrize("count", [0, 1])
def test_covariance_of_fewer_than_two_samples_is_refused(count):
    moments = accumulate(correlated_samples(1)) if count else StreamingMoments(POSITIONS, DIMS)
    with pytest.raises(ValueError, match=f"at least 2 samples, got {count}"):
        _ = moments.covariance
