"""Our recipe, step by step, with networks that are known functions."""

import pytest
import torch
from brightness_models import brightness_models
from diffad.repair import Repair


def white(noisy: torch.Tensor, t: int) -> torch.Tensor:
    return torch.ones_like(noisy)


def smoothness(images: torch.Tensor) -> torch.Tensor:
    """A distance that lowers with contrast."""
    return -(images - images.mean(dim=(2, 3), keepdim=True)).square().mean(dim=1)


def run(images: torch.Tensor, predict=white, report=lambda x: x, **settings):
    recipe = Repair(**{"timesteps": (2, 1), "spins": 1, "margin": 0, "region_level": 0.1} | settings)
    return recipe.run(images, brightness_models(predict, smoothness), report)


def test_halo_is_repaired_only_where_the_denoised_image_contradicts_it():
    images = torch.ones(1, 3, 32, 32)
    images[..., 16, 4:28] = 0.2  # a scratch of height 0.4, below the region's share of its peak
    images[..., 16, 12:20] = -1  # but in the middle
    images[..., 10:16, 14:18] = 0.35  # height 0.33, of a surface that a denoiser gives back
    assert torch.allclose(run(images, halo_share=0.6).images[..., 16, 4:8], images[..., 16, 4:8], atol=0.01)

    def keeps_the_surface(noisy: torch.Tensor, t: int) -> torch.Tensor:
        return torch.where((noisy - 0.35).abs() < 0.01, noisy, torch.ones_like(noisy))

    result = run(images, keeps_the_surface, halo_share=0.3, contrast=0.2)
    assert (result.images[..., 16, 4:28] > 0.99).all()
    assert torch.equal(result.images[..., 10:12, 14:18], images[..., 10:12, 14:18])
    assert (result.replaced[..., 16, 4:28] == 1).all()


def test_further_goes_borrow_grain_whole():
    generator = torch.Generator().manual_seed(0)
    images = 0.7 + 0.3 * torch.rand(1, 3, 32, 32, generator=generator)
    images[..., :4, :4] = -1

    def too_dark(noisy: torch.Tensor, t: int) -> torch.Tensor:
        painted = torch.full_like(noisy, 0.85)
        painted[..., :4, :4] = -0.9
        return painted

    def grain_of(attempts: int) -> float:
        """Contrast within the region after the last go."""
        steps = []
        run(images, too_dark, lambda x: steps.append(x) or x, grain=0.25, attempts=attempts)
        return steps[-1][..., :4, :4].std().item()

    assert grain_of(1) > 0.005
    assert grain_of(2) == pytest.approx(4 * grain_of(1), rel=0.3)


def test_repair_at_most_costs_what_its_settings_say():
    images = torch.full((1, 3, 32, 32), 1.0)
    images[..., 14:18, 14:18] = -1
    calls = []

    def stubborn(noisy: torch.Tensor, t: int) -> torch.Tensor:
        calls.append(t)
        return -torch.ones_like(noisy)

    result = run(images, stubborn, timesteps=(490, 300, 150, 50), spins=1, attempts=2)
    assert calls == [490, 300, 150, 50] * 2
    assert (result.images[..., 14:18, 14:18] == -1).all()
