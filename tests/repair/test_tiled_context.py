"""Methods for whole images on images larger than the model's resolution."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from brightness_models import brightness_context
from diffad.repair.gradient_denoising import loss_and_gradient, mahalanobis_loss
from diffad.repair.tiled_context import over_tiles
from diffad.scoring.tiling import tile_starts, window
from PIL import Image
from tiny_pipeline import SIZE, smooth_images, tiled_pipeline

OVERLAP = 0.25
TILE = 32  # of `brightness_context`
WHOLE_IMAGE_METHODS = {
    "samples": {"num_inference_steps": 10, "draws": 1},
    "paper": {"num_steps": 10},
    "algorithm_1": {"num_steps": 10, "num_inference_steps": None},
    "gradient_descent": {"num_steps": 4},
    "partial_diffusion": {"num_inference_steps": 10, "stochastic": True},
}


def tile_by_tile(images: torch.Tensor):
    """Corners and tiles, by a naive loop."""
    for y in tile_starts(images.shape[-2], TILE, OVERLAP):
        for x in tile_starts(images.shape[-1], TILE, OVERLAP):
            yield y, x, images[..., y : y + TILE, x : x + TILE]


def test_the_loss_is_the_mean_of_the_tiles_losses_and_so_is_its_gradient():
    distance = lambda images: images.pow(3).sum(dim=1)  # noqa: E731
    context = over_tiles(brightness_context(None, distance, batch=2), OVERLAP)
    images = torch.rand(2, 3, 48, 70, generator=torch.Generator().manual_seed(0))
    loss, gradient = loss_and_gradient(images, context.distance)
    variable = images.clone().requires_grad_()
    expected = torch.stack([mahalanobis_loss(distance(tile)) for _, _, tile in tile_by_tile(variable)]).mean(dim=0)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), variable)[0])


def test_denoised_tiles_are_blended_by_raised_cosines():
    predict = lambda tiles, t: tiles * tiles.mean(dim=(1, 2, 3), keepdim=True) + t  # noqa: E731
    context = over_tiles(brightness_context(predict, batch=2), OVERLAP)
    images = torch.rand(2, 3, 48, 70, generator=torch.Generator().manual_seed(0))
    total, weights = np.zeros((2, 3, 48, 70)), np.zeros((48, 70))
    for y, x, tile in tile_by_tile(images):
        total[..., y : y + TILE, x : x + TILE] += window((TILE, TILE)) * predict(tile, 3).numpy()
        weights[y : y + TILE, x : x + TILE] += window((TILE, TILE))
    np.testing.assert_allclose(context.predict_x0(images, 3).numpy(), total / weights, atol=1e-5)


def test_tiles_agree_on_the_noise_where_they_overlap():
    of_tiles = replace(brightness_context(None), reverse_step=lambda xt, t, length, noise: xt + noise)
    plain = replace(brightness_context(None, batch=2), select=lambda index: of_tiles)
    images, noise = torch.zeros(2, 3, 48, 70), torch.randn(2, 3, 48, 70, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(over_tiles(plain, OVERLAP).reverse_step(images, 5, 10, noise), noise)


def test_an_image_of_one_tile_is_treated_as_without_tiles():
    predict = lambda tiles, t: tiles.sin()  # noqa: E731
    plain = brightness_context(predict, batch=2)
    tiled = over_tiles(plain, OVERLAP)
    images = torch.rand(2, 3, TILE, TILE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiled.predict_x0(images, 3), plain.predict_x0(images, 3))
    assert torch.equal(tiled.distance(images), plain.distance(images))


@pytest.fixture(scope="module")
def pipe():
    pipe = tiled_pipeline(weights={"mahalanobis": 1.0})
    pipe.calibrate(smooth_images(21, seed=4, size=(96, 64)), short_side=2 * SIZE)
    return pipe


@pytest.mark.parametrize("preset", WHOLE_IMAGE_METHODS)
def test_models_of_tiles_take_every_method(pipe, preset):
    """Of three sizes; an image's repair neither depends on its neighbours nor on the run."""
    sizes = [(96, 64), (64, 64), (96, 64), (64, 130)]
    images = [smooth_images(1, seed=10 + i, size=size)[0] for i, size in enumerate(sizes)]
    images[0].paste(Image.new("RGB", (12, 12), "white"), (40, 20))
    settings = {"preset": preset, "return_traces": True, **WHOLE_IMAGE_METHODS[preset]}
    together = pipe.reconstruct(images, batch_size=4, **settings)
    alone = pipe.reconstruct(images[0], batch_size=1, **settings)
    assert together.images[3].size == (64, 130) and together.difference_maps[0].any()
    difference = np.asarray(together.images[0], dtype=float) - np.asarray(alone.images[0])
    assert np.abs(difference).max() <= 1
    np.testing.assert_allclose(together.traces[0], alone.traces[0], rtol=1e-3)
    if preset not in ("partial_diffusion", "samples"):  # which go down no gradient
        assert together.traces[0][-1] < together.traces[0][0]
