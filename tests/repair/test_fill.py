"""Harmonic filling, and the weight of structure, against closed forms and naive loops."""

import numpy as np
import pytest
import torch
from diffad.repair.fill import fill_from_surroundings, structure_weight


def blob(*sides: int) -> torch.Tensor:
    """An irregular region `(1, 1, H, W)` that touches the upper border."""
    region = torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(1)) > 0.6
    region[..., :7, 8:14] = True
    region[..., 12:, :] = False
    return region.float()


def test_fill_is_the_mean_of_its_neighbours_and_keeps_the_rest():
    images = torch.rand(2, 3, 18, 22, generator=torch.Generator().manual_seed(0)) * 2 - 1
    region = torch.cat([blob(18, 22), torch.zeros(1, 1, 18, 22)])
    filled = fill_from_surroundings(images, region)
    outside = (region == 0).expand_as(images)
    assert torch.equal(filled[outside], images[outside]) and filled.dtype == images.dtype
    for y, x in region[0, 0].nonzero().tolist():
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        values = [filled[0, :, i, j] for i, j in around if 0 <= i < 18 and 0 <= j < 22]
        assert torch.allclose(filled[0, :, y, x], torch.stack(values).mean(dim=0), atol=1e-6)


def test_fill_continues_a_ramp_exactly():
    ramp = torch.linspace(-0.5, 0.5, 32).expand(1, 3, 32, 32).clone()
    region = torch.zeros(1, 1, 32, 32)
    region[..., 10:16, 10:16] = 1
    filled = fill_from_surroundings(torch.where(region.bool(), torch.ones_like(ramp), ramp), region)
    assert torch.allclose(filled, ramp, atol=1e-6)


def test_fill_without_surroundings_is_the_mean_colour():
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    filled = fill_from_surroundings(images, torch.ones(1, 1, 8, 8))
    assert torch.allclose(filled, images.mean(dim=(2, 3), keepdim=True).expand_as(images))


def test_fill_of_an_image_does_not_depend_on_the_batch():
    images = torch.rand(3, 3, 18, 22, generator=torch.Generator().manual_seed(0))
    region = torch.cat([blob(18, 22).flip(3), torch.ones(1, 1, 18, 22), blob(18, 22)])
    assert torch.equal(fill_from_surroundings(images, region)[2:], fill_from_surroundings(images[2:], region[2:]))


def test_weight_against_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    filled = torch.rand(1, 3, 18, 22, generator=generator).double()
    denoised = filled + 0.15 * torch.randn(1, 3, 18, 22, generator=generator).double()
    denoised[..., 11:] = filled[..., 11:] + 0.02
    region, error, sigma = blob(18, 22), 0.1, 1.5
    weight = structure_weight(denoised, filled, region, error, sigma)[0, 0].numpy()
    square, inside = (denoised - filled)[0].square().mean(dim=0).numpy(), region[0, 0].numpy()
    signs = set()
    for y, x in np.argwhere(inside > 0):
        total = count = 0.0
        for i in range(y - 4, y + 5):  # 3 sigma, reflected at the border
            for j in range(x - 4, x + 5):
                row, column = (abs(k) if k < size else 2 * size - 2 - k for k, size in ((i, 18), (j, 22)))
                share = np.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * sigma**2)) * inside[row, column]
                total, count = total + share * square[row, column], count + share
        expected = max(0.0, 1 - error**2 * count / total)
        signs.add(expected > 0)
        assert weight[y, x] == pytest.approx(expected, abs=1e-6)
    assert signs == {True, False}


def test_weight_of_error_is_none_and_of_structure_almost_all():
    filled = torch.zeros(2, 3, 32, 32)
    region = torch.zeros(2, 1, 32, 32)
    region[..., 8:24, 8:24] = 1
    noise = 0.03 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    structure = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    weight = structure_weight(structure + noise, filled, region, error=0.06)
    assert weight.shape == region.shape
    assert (weight[0] == 0).all() and (weight[1, :, 8:24, 8:24] > 0.99).all()
    # No difference, no weight, and no division by it.
    assert (structure_weight(filled, filled, region, error=0.0) == 0).all()
