import json

import numpy as np
import pytest
import torch
from diffad import PadimGaussian
from scipy.linalg import eigh
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance

CHANNELS, GRID = 5, (2, 3)
LABELS = [0, 1, 2] * 2
CONDITIONING_OUT_OF_RANGE = [
    *(("rank", 5), ("rank", -1)),
    *(("pooling", 1.0), ("pooling", -0.1)),
    *(("shared_whitening", 0.0), ("shared_whitening", -0.1), ("shared_whitening", float("nan"))),
]


def random_features(count: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Correlated features `(count, channels, *grid)` whose mean and spread differ from position to position."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, *GRID, generator=torch.Generator().manual_seed(99))
    mean = torch.randn(CHANNELS, *GRID, generator=torch.Generator().manual_seed(98))
    return scale * torch.einsum("cdhw,ndhw->nchw", mixing, torch.randn(count, CHANNELS, *GRID, generator=generator)) + mean


def fitted(features: torch.Tensor, grid=GRID, double: bool = False, **config) -> PadimGaussian:
    gaussian = PadimGaussian(CHANNELS, grid=grid, **config)
    if double:
        gaussian.mean, gaussian.whitening = gaussian.mean.double(), gaussian.whitening.double()
    moments = gaussian.new_moments()
    gaussian.accumulate(moments, features)
    return gaussian.fit(moments)


def reference_distances(train: np.ndarray, test: np.ndarray, regularization: float) -> np.ndarray:
    """Squared Mahalanobis distances of `(m, D)` vectors to the Gaussian of `(n, D)` vectors by sklearn and scipy."""
    empirical = EmpiricalCovariance().fit(train.astype(np.float64))
    covariance = empirical.covariance_ * len(train) / (len(train) - 1) + regularization * np.eye(train.shape[1])
    precision = np.linalg.inv(covariance)
    return np.array([mahalanobis(vector, empirical.location_, precision) ** 2 for vector in test.astype(np.float64)])


@pytest.mark.parametrize(("double", "rtol"), [(True, 1e-6), (False, 1e-4)])
@pytest.mark.parametrize(("count", "regularization"), [(30, 0.01), (30, 1.0), (3, 0.01)])
def test_distance_matches_sklearn_and_scipy_at_every_position(count, regularization, double, rtol):
    train, test = random_features(count), random_features(4, seed=1)
    gaussian = fitted(train, double=double, regularization=regularization)
    expected = np.empty((4, *GRID))
    for row, column in np.ndindex(*GRID):
        vectors = (features[:, :, row, column].numpy() for features in (train, test))
        expected[:, row, column] = reference_distances(*vectors, regularization)
    np.testing.assert_allclose(gaussian(test).numpy(), expected, rtol=rtol)


@pytest.mark.parametrize(("double", "rtol"), [(True, 1e-6), (False, 1e-4)])
def test_shared_gaussian_pools_all_positions_and_accepts_any_grid(double, rtol):
    train = random_features(10)
    test = torch.randn(2, CHANNELS, 4, 7, generator=torch.Generator().manual_seed(1))
    distances = fitted(train, grid=None, double=double)(test)
    pooled, vectors = (features.movedim(1, -1).reshape(-1, CHANNELS).numpy() for features in (train, test))
    expected = reference_distances(pooled, vectors, 0.01).reshape(2, 4, 7)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=rtol)


def test_regularization_is_a_hundredth_by_default():
    train, test = random_features(20), random_features(2, seed=1)
    assert torch.equal(fitted(train)(test), fitted(train, regularization=0.01)(test))


def test_mean_distance_of_the_training_data_is_the_dimension():
    train = random_features(40)
    distances = fitted(train, double=True, regularization=0.0)(train)
    np.testing.assert_allclose(distances.mean(dim=0), np.full(GRID, CHANNELS * 39 / 40), rtol=1e-6)


@pytest.mark.parametrize("grid", [GRID, None])
def test_streaming_and_merging_give_the_same_as_all_at_once(grid):
    features = random_features(11)
    gaussian = PadimGaussian(CHANNELS, grid=grid)
    first, second = gaussian.new_moments(), gaussian.new_moments()
    for batch in features[:7].split(3):
        gaussian.accumulate(first, batch)
    gaussian.accumulate(second, features[7:])
    first.merge(second)
    gaussian.fit(first)
    at_once = fitted(features, grid=grid)
    torch.testing.assert_close(gaussian.mean, at_once.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gaussian.whitening, at_once.whitening, rtol=1e-5, atol=1e-6)


def test_large_mean_keeps_the_distance_accurate():
    train, test = random_features(50), random_features(4, seed=1)
    offset = 2.0**10
    shifted_train, shifted_test = train + offset, test + offset
    expected = fitted(shifted_train - offset, double=True)(shifted_test - offset)
    np.testing.assert_allclose(fitted(shifted_train, double=True)(shifted_test), expected, rtol=1e-6)
    np.testing.assert_allclose(fitted(shifted_train)(shifted_test), expected, rtol=0.02)


def test_fitting_more_positions_than_one_slice_holds():
    train = torch.randn(12, 3, 10, 13, generator=torch.Generator().manual_seed(0))
    gaussian = PadimGaussian(3, grid=(10, 13))
    moments = gaussian.new_moments()
    gaussian.accumulate(moments, train)
    distances = gaussian.fit(moments)(train)
    for row, column in [(0, 0), (4, 11), (4, 12), (9, 12)]:
        vectors = train[:, :, row, column].numpy()
        np.testing.assert_allclose(distances[:, row, column], reference_distances(vectors, vectors, 0.01), rtol=1e-4)


def test_chosen_channels_are_the_only_ones_used():
    gaussian = fitted(random_features(20), num_dims=3, seed=4)
    test = random_features(2, seed=1)
    expected = np.empty((2, *GRID))
    for row, column in np.ndindex(*GRID):
        train, vectors = (f[:, gaussian.dims, row, column].numpy() for f in (random_features(20), test))
        expected[:, row, column] = reference_distances(train, vectors, 0.01)
    np.testing.assert_allclose(gaussian(test).numpy(), expected, rtol=1e-4)
    unused = [channel for channel in range(CHANNELS) if channel not in gaussian.dims.tolist()]
    changed = test.clone()
    changed[:, unused] += 100
    assert torch.equal(gaussian(changed), gaussian(test))


def test_channels_are_drawn_by_the_seed_alone():
    torch.manual_seed(1)
    first = PadimGaussian(272, grid=None, num_dims=100, seed=7).dims
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = PadimGaussian(272, grid=None, num_dims=100, seed=7).dims
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert len(first.unique()) == 100 and first.min() >= 0 and first.max() < 272
    assert not torch.equal(first, PadimGaussian(272, grid=None, num_dims=100, seed=8).dims)


def test_all_channels_are_used_by_default():
    assert PadimGaussian(6, grid=None).dims.tolist() == list(range(6))


@pytest.mark.parametrize("num_dims", [0, CHANNELS + 1])
def test_impossible_number_of_channels_is_refused(num_dims):
    with pytest.raises(ValueError, match=f"num_dims must lie in 1..{CHANNELS}"):
        PadimGaussian(CHANNELS, grid=GRID, num_dims=num_dims)


def test_features_of_another_grid_are_refused():
    gaussian = fitted(random_features(5))
    with pytest.raises(ValueError, match="2x3 grid, got features of 3x2"):
        gaussian(torch.zeros(1, CHANNELS, 3, 2))


def test_fitting_without_enough_samples_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples"):
        fitted(random_features(1))


def test_moments_of_another_model_are_refused():
    shared, gridded = PadimGaussian(CHANNELS, grid=None), PadimGaussian(CHANNELS, grid=(10, 10))
    moments = shared.new_moments()
    shared.accumulate(moments, random_features(5))
    with pytest.raises(ValueError):
        gridded.fit(moments)


def test_gradient_is_twice_the_precision_times_the_deviation():
    train, test = random_features(20), random_features(3, seed=1).requires_grad_()
    gradient = torch.autograd.grad(fitted(train, double=True)(test).sum(), test)[0]
    for row, column in np.ndindex(*GRID):
        vectors = train[:, :, row, column].double().numpy()
        precision = np.linalg.inv(np.cov(vectors, rowvar=False) + 0.01 * np.eye(CHANNELS))
        deviation = test[:, :, row, column].detach().double().numpy() - vectors.mean(axis=0)
        np.testing.assert_allclose(gradient[:, :, row, column], 2 * deviation @ precision, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [GRID, None])
def test_distance_passes_gradcheck(grid):
    gaussian = fitted(random_features(20), grid=grid, double=True, num_dims=3)
    test = random_features(2, seed=1).double().requires_grad_()
    # The features are rounded to float32 inside; the distance is quadratic, so that a wide step costs no accuracy.
    assert torch.autograd.gradcheck(gaussian, test, eps=0.25, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("grid", [GRID, None])
def test_saved_model_is_bit_equal(tmp_path, grid):
    gaussian = fitted(random_features(20), grid=grid, num_dims=3, seed=4, regularization=0.5)
    gaussian.save_pretrained(tmp_path)
    loaded = PadimGaussian.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["regularization"] == 0.5
    assert loaded.state_dict().keys() == gaussian.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in gaussian.state_dict().items())
    test = random_features(2, seed=1)
    assert torch.equal(loaded(test), gaussian(test))


def test_half_precision_cast_leaves_the_numbers_alone(tmp_path):
    gaussian = fitted(random_features(20))
    gaussian.save_pretrained(tmp_path)
    test = random_features(2, seed=1).half()
    expected = gaussian(test.float())
    assert torch.equal(gaussian.half()(test), expected)
    assert torch.equal(PadimGaussian.from_pretrained(tmp_path, torch_dtype=torch.float16)(test), expected)


# Several categories


def test_gaussians_of_several_classes_are_those_fitted_alone():
    torch.manual_seed(0)
    features = [torch.randn(20, 5, 2, 3) * (1 + label) + label for label in range(3)]
    together = PadimGaussian(5, grid=(2, 3), num_dims=4, num_classes=3)
    alone = [PadimGaussian(5, grid=(2, 3), num_dims=4) for _ in range(3)]
    for label in (2, 0, 1):
        moments = together.new_moments()
        together.accumulate(moments, features[label])
        together.fit(moments, label)
        alone[label].fit(moments)
    test = torch.randn(6, 5, 2, 3)
    distances = together(test, torch.tensor(LABELS))
    for i, label in enumerate(LABELS):
        torch.testing.assert_close(distances[i], alone[label](test[i : i + 1])[0])
        # One category for all images, as a number or a tensor.
        expected = together(test, torch.full((6,), label))
        torch.testing.assert_close(together(test, label), expected)
        assert torch.equal(together(test, label), together(test, torch.tensor([label])))
    with pytest.raises(ValueError, match="3 classes need the category"):
        together(test)


def test_gradient_reaches_the_features_of_every_class():
    gaussian = PadimGaussian(2, grid=None, num_classes=2)
    gaussian.whitening.copy_(torch.eye(2) * torch.tensor([1.0, 3.0]).view(2, 1, 1))
    features = torch.ones(3, 2, 1, 1, requires_grad=True)
    gaussian(features, torch.tensor([1, 0, 1])).sum().backward()
    assert features.grad[:, 0, 0, 0].tolist() == [18, 2, 18]


@pytest.mark.parametrize("grid", [GRID, None])
@pytest.mark.parametrize(("rank", "pooling"), [(0, 0.0), (2, 0.0), (4, 0.3), (None, 0.3)])
def test_low_rank_and_pooled_covariances_match_their_definition(grid, rank, pooling):
    train, test = random_features(9), random_features(4, seed=1)
    distances = fitted(train, grid=grid, regularization=0.1, rank=rank, pooling=pooling)(test).double().numpy()
    at_positions = [features.flatten(2).permute(2, 0, 1).double().numpy() for features in (train, test)]  # (P, n, D)
    if grid is None:
        at_positions = [vectors.reshape(1, -1, CHANNELS) for vectors in at_positions]
    covariances = [np.cov(vectors.T) for vectors in at_positions[0]]
    expected = []
    for of_train, of_test, covariance in zip(*at_positions, covariances, strict=True):
        sigma = (1 - pooling) * covariance + pooling * np.mean(covariances, axis=0)
        if rank is not None:
            variances, directions = np.linalg.eigh(sigma)
            variances[: CHANNELS - rank] = variances[: CHANNELS - rank].mean()
            sigma = directions @ np.diag(variances) @ directions.T
        precision = np.linalg.inv(sigma + 0.1 * np.eye(CHANNELS))
        expected.append([mahalanobis(vector, of_train.mean(axis=0), precision) ** 2 for vector in of_test])
    expected = np.reshape(expected, (-1, 4)) if grid else np.reshape(expected, (GRID[0] * GRID[1], 4))
    np.testing.assert_allclose(distances.reshape(4, -1).T, expected, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 2, None])
def test_covariances_relative_to_the_mean_one_match_their_definition(rank):
    train, test = random_features(9), random_features(4, seed=1)
    gaussian = fitted(train, regularization=0.3, rank=rank, shared_whitening=0.2)
    of_train, of_test = (features.flatten(2).permute(2, 0, 1).double().numpy() for features in (train, test))  # (P, n, D)
    covariances = [np.cov(vectors.T) for vectors in of_train]
    # Of components and variances relative to the mean covariance the generalised eigenproblem knows all.
    mean_covariance = np.mean(covariances, axis=0) + 0.2 * np.eye(CHANNELS)
    for place, (vectors, new, covariance) in enumerate(zip(of_train, of_test, covariances, strict=True)):
        variances, directions = eigh(covariance, mean_covariance)  # directions^T mean_covariance directions = I
        if rank is not None:
            variances[: CHANNELS - rank] = variances[: CHANNELS - rank].mean()
        coordinates = (new - vectors.mean(axis=0)) @ directions
        expected = (coordinates**2 / (variances + 0.3)).sum(axis=1)
        np.testing.assert_allclose(gaussian(test).flatten(1)[:, place].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"rank": 2}, {"rank": 2, "shared_whitening": 0.1}])
def test_low_rank_gaussians_of_several_categories_keep_their_own_components(settings):
    features = [random_features(6, seed=seed) for seed in (0, 1)]
    together = PadimGaussian(CHANNELS, grid=GRID, num_classes=2, **settings)
    for category, of_category in enumerate(features):
        moments = together.new_moments()
        together.accumulate(moments, of_category)
        together.fit(moments, category)
    test = random_features(4, seed=2)
    for category, of_category in enumerate(features):
        expected = fitted(of_category, **settings)(test)
        torch.testing.assert_close(together(test, category), expected)
        torch.testing.assert_close(together(test, torch.full((4,), category)), expected)


@pytest.mark.parametrize(("setting", "value"), CONDITIONING_OUT_OF_RANGE)
def test_conditioning_out_of_range_is_refused(setting, value):
    with pytest.raises(ValueError, match=setting):
        PadimGaussian(CHANNELS, grid=GRID, **{setting: value})
