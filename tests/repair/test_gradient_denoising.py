"""Eqs. 12 and 13 against finite differences, and the noise they add against simulation."""

import numpy as np
import pytest
import torch
from diffad.repair.gradient_denoising import (
    added_variance,
    gradient_step,
    loss_and_gradient,
    matched_timestep,
    unit_direction,
)
from diffusers import DDPMScheduler


def quartic(images: torch.Tensor) -> torch.Tensor:
    return (images.double() ** 4).sum(dim=1) + images.double()[:, 0] * images.double()[:, 2]


def test_gradient_is_that_of_the_mean_distance():
    images = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    loss, gradient = loss_and_gradient(images, quartic)
    for index in np.ndindex(2, 3, 4, 5):
        shift = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
        shift[index] = 1e-5
        ahead, behind = quartic(images.double() + shift), quartic(images.double() - shift)
        expected = (ahead - behind).mean(dim=(1, 2))[index[0]] / 2e-5
        assert gradient[index].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(loss, quartic(images).mean(dim=(1, 2)))


def test_gradient_works_without_grad_mode_and_leaves_nothing_behind():
    layer = torch.nn.Conv2d(3, 2, 3)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        loss, gradient = loss_and_gradient(images, lambda x: layer(x).square().sum(dim=1))
        assert not torch.is_grad_enabled()
    assert gradient.abs().sum() > 0
    assert not loss.requires_grad and not gradient.requires_grad and not images.requires_grad
    assert layer.weight.grad is None


def test_direction_is_downhill_with_unit_variance_for_every_image():
    gradient = torch.randn(3, 3, 8, 8) * torch.tensor([1e-6, 1.0, 1e3]).view(3, 1, 1, 1)
    direction = unit_direction(gradient)
    torch.testing.assert_close(direction.std(dim=(1, 2, 3)), torch.ones(3))
    assert (direction * gradient <= 0).all()
    assert unit_direction(torch.zeros(1, 3, 4, 4)).abs().max() == 0


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_added_variance_matches_simulated_steps(correlation):
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(200_000, generator=generator, dtype=torch.float64)
    image = torch.zeros_like(common)
    for _ in range(5):
        own = torch.randn(common.shape, generator=generator, dtype=torch.float64)
        image = gradient_step(image, correlation**0.5 * common + (1 - correlation) ** 0.5 * own, 0.02)
    assert added_variance(0.02, 5, correlation) == pytest.approx(image.var().item(), rel=0.02)


def test_independent_steps_are_forward_diffusion_steps():
    assert added_variance(0.02, 5, 0.0) == pytest.approx(1 - (1 - 0.02**2) ** 5, rel=1e-12)


def test_matched_timestep_has_the_nearest_noise_level():
    scheduler = DDPMScheduler()
    levels = 1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for variance in (0.002, 0.01, 0.3):
        assert matched_timestep(scheduler.alphas_cumprod, variance) == np.abs(levels - variance).argmin()
