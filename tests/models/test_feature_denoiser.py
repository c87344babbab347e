"""The denoiser of features and thumbnails: what it learns against a closed form, categories, grids, saving."""

import numpy as np
import pytest
import torch
from diffad import FeatureDenoiser
from diffad.diffusion.chain import ReverseChain
from diffad.diffusion.reverse_step import add_noise
from diffusers import DDPMScheduler

GRID = (4, 4)


def small(**settings) -> FeatureDenoiser:
    torch.manual_seed(0)
    return FeatureDenoiser(**{"feature_channels": 3, "grid": GRID, "width": 32, "num_blocks": 1, "thumbnails": 2, **settings})


CHANNELS = 3 + 12  # of small(): features, and colours of 2x2 squares


def test_begins_with_the_mean():
    predicted = small()(torch.randn(2, CHANNELS, *GRID), torch.tensor([401]))
    assert predicted.shape == (2, CHANNELS, *GRID) and not predicted.any()


def test_thumbnails_are_means_of_squares():
    denoiser, images = small(), torch.rand(2, 3, 32, 32) * 2 - 1
    denoiser.set_pixel_statistics(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.0, 0.0]))  # no spread: keeps its scale
    features = torch.randn(2, 3, *GRID)
    clean = denoiser.clean(features, images)
    of_features, of_pixels = denoiser.split(clean)
    assert torch.equal(of_features, features) and of_pixels.shape == (2, 12, *GRID)
    for color, mean, std in zip(range(3), (0.1, 0.2, 0.3), (0.5, 1.0, 1.0)):
        for row, column in np.ndindex(2, 2):
            square = images[1, color, 16 + 4 * row : 20 + 4 * row, 8 + 4 * column : 12 + 4 * column].mean()
            found = of_pixels[1, 4 * color + 2 * row + column, 2, 1]
            assert found.item() == pytest.approx((square.item() - mean) / std, abs=1e-5)
    with pytest.raises(ValueError, match="no thumbnail of 2 squares"):
        denoiser.clean(features, images[..., :20])


def test_timesteps_of_each_image_or_of_all():
    denoiser, noisy = small(), torch.randn(3, CHANNELS, *GRID)
    torch.nn.init.normal_(denoiser.conv_out.weight)
    together = denoiser(noisy, torch.tensor([5, 5, 5]))
    torch.testing.assert_close(denoiser(noisy, torch.tensor([5])), together)
    assert not torch.allclose(denoiser(noisy, torch.tensor([5, 500, 5]))[1], together[1])


def test_the_conditional_mean_of_gaussian_features_is_learned():
    """Of Gaussian features the best prediction is linear, and its mean squared error has a closed form."""
    covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")
    step = ReverseChain(scheduler).step(torch.tensor([300]))
    signal, noise_variance = step.sqrt_alpha_bar.item(), step.sqrt_one_minus_alpha_bar.item() ** 2
    # MSE = tr(S - a^2 S (a^2 S + n I)^-1 S) / D, the same at every position: positions are independent.
    gain = signal**2 * covariance @ torch.linalg.inv(signal**2 * covariance + noise_variance * torch.eye(3))
    optimum = torch.trace(covariance - gain @ covariance).item() / 3
    generator, factor = torch.Generator().manual_seed(1), torch.linalg.cholesky(covariance)

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        white = torch.randn(count, 3, 16, 16, generator=generator)
        clean = torch.einsum("ij,bjhw->bihw", factor, white)
        clean = torch.cat([clean, torch.zeros(count, 12, 16, 16)], dim=1)  # a thumbnail of one colour
        return clean, add_noise(clean, torch.randn(clean.shape, generator=generator), step)

    denoiser = small(grid=None, width=48).train()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    for _ in range(200):
        clean, noisy = drawn(16)
        (denoiser(noisy, torch.tensor([300])) - clean).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    clean, noisy = drawn(64)
    with torch.no_grad():
        error = (denoiser.eval()(noisy, torch.tensor([300])) - clean)[:, :3].square().mean().item()
    assert 0.95 * optimum < error < 1.15 * optimum
    assert error < 0.8 * clean[:, :3].square().mean().item()  # far below that of the mean


def test_categories_have_embeddings_of_their_own():
    denoiser, noisy = small(num_classes=2), torch.randn(2, CHANNELS, *GRID)
    torch.nn.init.normal_(denoiser.conv_out.weight)
    timestep = torch.tensor([200])
    mixed = denoiser(noisy, timestep, torch.tensor([0, 1]))
    torch.testing.assert_close(mixed[0], denoiser(noisy[:1], timestep, 0)[0])
    torch.testing.assert_close(mixed[1], denoiser(noisy[1:], timestep, 1)[0])
    assert not torch.allclose(mixed[0], denoiser(noisy[:1], timestep, 1)[0])
    with pytest.raises(ValueError, match="2 categories needs the category"):
        denoiser(noisy, timestep)


def test_grids_that_do_not_fold_are_refused():
    with pytest.raises(ValueError, match="grid 3x4 of features is not divisible by fold 2"):
        small(grid=(3, 4))
    with pytest.raises(ValueError, match="not divisible by fold 2"):
        small(grid=None)(torch.randn(1, CHANNELS, 5, 4), torch.tensor([1]))
    assert small(grid=(3, 5), fold=1)(torch.randn(1, CHANNELS, 3, 5), torch.tensor([1])).shape == (1, CHANNELS, 3, 5)


def test_float32_whatever_is_asked():
    denoiser, noisy = small(), torch.randn(1, CHANNELS, *GRID)
    torch.nn.init.normal_(denoiser.conv_out.weight)
    expected = denoiser(noisy, torch.tensor([7]))
    with torch.autocast("cpu", torch.bfloat16):
        inside = denoiser(noisy, torch.tensor([7]))
    assert torch.equal(inside, expected) and denoiser.half().conv_in.weight.dtype == torch.float32


def test_saved_and_loaded_it_is_the_same(tmp_path):
    denoiser, noisy = small(rank=2), torch.randn(1, CHANNELS, *GRID)
    torch.nn.init.normal_(denoiser.conv_out.weight)
    for gaussian, channels in ((denoiser.gaussian, 3), (denoiser.pixel_gaussian, 12)):
        moments = gaussian.new_moments()
        gaussian.accumulate(moments, torch.randn(20, channels, *GRID))
        gaussian.fit(moments)
    denoiser.save_pretrained(tmp_path)
    loaded = FeatureDenoiser.from_pretrained(tmp_path)
    assert torch.equal(loaded(noisy, torch.tensor([3])), denoiser(noisy, torch.tensor([3])))
    assert torch.equal(loaded.gaussian(noisy[:, :3]), denoiser.gaussian(noisy[:, :3]))
    denoiser.gaussian.precision.zero_()
    with pytest.raises(ValueError, match="gaussian.precision is not positive"):
        denoiser.check_state()
    denoiser.pixel_std.zero_()
    with pytest.raises(ValueError, match="pixel_std is not positive"):
        denoiser.check_state()


def test_the_conditioning_of_its_gaussian_is_saved(tmp_path):
    conditioning = {"pooling": 0.3, "regularization": 0.1, "shared_whitening": 0.2, "rank": 2}
    denoiser, errors = small(num_classes=2, **conditioning), torch.randn(20, 3, *GRID)
    for category in range(2):
        for fitted, values in ((denoiser.gaussian, errors), (denoiser.pixel_gaussian, torch.randn(20, 12, *GRID))):
            moments = fitted.new_moments()
            fitted.accumulate(moments, values)
            fitted.fit(moments, category)
    denoiser.save_pretrained(tmp_path)
    loaded = FeatureDenoiser.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in conditioning} == conditioning
    assert torch.equal(loaded.gaussian(errors, 1), denoiser.gaussian(errors, 1))
