"""Features at further scales: Gaussians against numpy, neighbours against a naive loop, saving."""

import numpy as np
import pytest
import torch
from diffad import MultiscaleFeatures
from diffad.models.multiscale import COARSE_DIMS, ScaleGaussian, ScaleNeighbors
from pyramid_pipeline import fit_scales

GRID = (3, 4)


def random_features(count: int, channels: int, seed: int = 0, grid: tuple[int, int] = GRID) -> torch.Tensor:
    """Raw features whose channels differ in level and spread."""
    scale = torch.linspace(1, 5, channels).view(1, -1, 1, 1)
    return torch.randn(count, channels, *grid, generator=torch.Generator().manual_seed(seed)) * scale + 3 * scale


def standardized(features: torch.Tensor, good: torch.Tensor) -> np.ndarray:
    values, good = features.double().numpy(), good.double().numpy()
    axes = (0, 2, 3)
    return (values - good.mean(axis=axes, keepdims=True)) / good.std(axis=axes, ddof=1, keepdims=True)


def pooled(features: np.ndarray) -> np.ndarray:
    """Means over 3x3 positions, the border repeated."""
    padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = features.shape[2:]
    return sum(padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)) / 9


def nearest(new: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Smallest squared distance to the bank's images at the same position, give or take one, by a loop."""
    result = np.full((len(new), *new.shape[2:]), np.inf)
    for i, y, x in np.ndindex(*result.shape):
        for other in bank:
            for row in range(max(0, y - 1), min(new.shape[2], y + 2)):
                for column in range(max(0, x - 1), min(new.shape[3], x + 2)):
                    result[i, y, x] = min(result[i, y, x], np.square(new[i, :, y, x] - other[:, row, column]).sum())
    return result


@pytest.mark.parametrize("kept", [1, 5, 8])
def test_neighbors_are_those_of_a_naive_loop(kept):
    good, new = random_features(kept, 6), random_features(3, 6, seed=1)
    neighbors = ScaleNeighbors(6, GRID, images=max(kept, 5), num_classes=1)
    neighbors.set_statistics(good)
    neighbors.fit(good)
    expected = nearest(pooled(standardized(new, good)), pooled(standardized(good, good)))
    np.testing.assert_allclose(neighbors(new), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(neighbors(good), 0, atol=1e-3)


def test_neighbors_of_each_category_are_its_own():
    of_category = [random_features(4, 6, seed=seed) for seed in range(3)]
    new, everything = random_features(6, 6, seed=9), torch.cat(of_category)
    neighbors = ScaleNeighbors(6, GRID, images=4, num_classes=3)
    neighbors.set_statistics(everything)
    for category, good in enumerate(of_category):
        neighbors.fit(good, category)
    labels = [0, 2, 1, 1, 0, 2]
    distances = neighbors(new, torch.tensor(labels))
    for i, label in enumerate(labels):
        own = pooled(standardized(of_category[label], everything))
        expected = nearest(pooled(standardized(new[i : i + 1], everything)), own)[0]
        np.testing.assert_allclose(distances[i], expected, rtol=1e-4, atol=1e-4)
        for one in (label, torch.tensor([label])):
            torch.testing.assert_close(neighbors(new, one)[i], distances[i])


@pytest.mark.parametrize(("channels", "dims"), [(6, None), (6, 6), (12, 5)])
def test_gaussian_is_that_of_standardised_and_projected_features(channels, dims):
    good, new = random_features(40, channels), random_features(4, channels, seed=1)
    kept = channels if dims is None else dims
    scale = ScaleGaussian(channels, dims, seed=3, grid=GRID, rank=kept - 1, regularization=0.3)
    scale.set_statistics(good)
    moments = scale.gaussian.new_moments()
    for batch in good.split(16):
        scale.accumulate(moments, batch)
    scale.gaussian.fit(moments)
    values = [standardized(features, good) for features in (good, new)]
    if kept < channels:
        projection = scale.projection.double().numpy()
        np.testing.assert_allclose(projection.T @ projection, channels / kept * np.eye(kept), atol=1e-5)
        values = [np.einsum("nchw,cd->ndhw", v, projection) for v in values]
    else:
        assert scale.projection is None
    train, test = values
    for row, column in np.ndindex(*GRID):
        covariance = np.cov(train[:, :, row, column].T) + 0.3 * np.eye(kept)
        deviation = test[:, :, row, column] - train[:, :, row, column].mean(axis=0)
        expected = np.einsum("nc,cd,nd->n", deviation, np.linalg.inv(covariance), deviation)
        np.testing.assert_allclose(scale(new)[:, row, column], expected, rtol=1e-3)


def fitted_model(scales: tuple[str, ...] = ("coarse", "detail", "coarse_detail", "neighbors")) -> MultiscaleFeatures:
    channels = {"coarse": 160, "detail": 6, "coarse_detail": 160, "neighbors": 6}
    model = MultiscaleFeatures(6, 160, grid=(4, 6), scales=scales, rank=3, neighbor_images=3)
    grids = {name: (2, 3) if name.startswith("coarse") else (4, 6) for name in scales}
    fit_scales(model, {name: random_features(20, channels[name], grid=grids[name]) for name in scales})
    return model


def features_of(scale: str) -> torch.Tensor:
    return random_features(2, 160, 5, (2, 3)) if scale.startswith("coarse") else random_features(2, 6, 5, (4, 6))


@pytest.fixture(scope="module")
def model() -> MultiscaleFeatures:
    return fitted_model()


def test_coarse_features_have_half_the_grid_and_are_projected(model):
    assert model.coarse.gaussian.config.grid == model.coarse_detail.gaussian.config.grid == (2, 3)
    assert model.coarse.projection.shape == (160, COARSE_DIMS) and model.detail.projection is None
    assert model.detail.gaussian.config.grid == (4, 6)


def test_coarse_features_may_keep_more_components():
    for coarse_rank, kept in ((None, 3), (9, 9)):
        model = MultiscaleFeatures(6, 160, (4, 6), ("coarse", "detail", "coarse_detail"), rank=3, coarse_rank=coarse_rank)
        for scale, rank in (("coarse", kept), ("detail", 3), ("coarse_detail", kept)):
            assert getattr(model, scale).gaussian.components.shape[1] == rank


@pytest.mark.parametrize("kept", [("detail",), ("coarse", "neighbors"), ()])
def test_what_is_kept_of_the_scales_gives_equal_distances(kept, model):
    reduced = model.with_only(kept)
    assert tuple(reduced.config.scales) == kept
    assert {name.partition(".")[0] for name in reduced.state_dict()} == set(kept)
    for scale in kept:
        assert torch.equal(reduced(scale, features_of(scale)), model(scale, features_of(scale)))


def test_saved_and_loaded_models_are_bit_equal(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, state = MultiscaleFeatures.from_pretrained(tmp_path), model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    for scale in model.config.scales:  # products may be summed in another order where the matrices lie elsewhere in memory
        torch.testing.assert_close(loaded(scale, features_of(scale)), model(scale, features_of(scale)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neighbors.channel_std", "neighbors.channel_std is not positive"),
        ("detail.channel_std", "detail.channel_std is not positive"),
        ("coarse.gaussian.precision", "precision is not positive"),
    ],
)
def test_saved_spread_that_is_not_positive_is_refused(name, message, tmp_path):
    model = fitted_model()
    model.get_buffer(name)[-1] = 0
    model.save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        MultiscaleFeatures.from_pretrained(tmp_path)
