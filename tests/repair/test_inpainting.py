"""Our method, step by step, with networks that are known functions."""

from collections import Counter

import pytest
import torch
from brightness_models import brightness_context
from diffad.repair.inpainting import Inpainting


def white(noisy: torch.Tensor, t: int) -> torch.Tensor:
    return torch.ones_like(noisy)


def smoothness(images: torch.Tensor) -> torch.Tensor:
    """A distance that lowers with contrast."""
    return -(images - images.mean(dim=(2, 3), keepdim=True)).square().mean(dim=1)


def run(images: torch.Tensor, predict=white, on_step=lambda x: x, **settings):
    method = Inpainting(**{"timesteps": (2, 1), "spins": 1, "margin": 0, "region_level": 0.1} | settings)
    return method.run(images, brightness_context(predict, smoothness, len(images)), on_step)


def test_border_zone_is_repaired_only_where_it_differs_from_the_denoised_image():
    images = torch.ones(1, 3, 32, 32)
    images[..., 16, 4:28] = 0.2  # a scratch of height 0.4, below the region's share of its peak
    images[..., 16, 12:20] = -1  # but in the middle
    images[..., 10:16, 14:18] = 0.35  # height 0.33, of a surface that a denoiser gives back
    assert torch.allclose(run(images, border_share=0.6).images[..., 16, 4:8], images[..., 16, 4:8], atol=0.01)

    def keeps_the_surface(noisy: torch.Tensor, t: int) -> torch.Tensor:
        return torch.where((noisy - 0.35).abs() < 0.01, noisy, torch.ones_like(noisy))

    result = run(images, keeps_the_surface, border_share=0.3, border_difference=0.2)
    assert (result.images[..., 16, 4:28] > 0.99).all()
    assert torch.equal(result.images[..., 10:12, 14:18], images[..., 10:12, 14:18])
    assert (result.replaced[..., 16, 4:28] == 1).all()


def test_further_attempts_transfer_texture_whole():
    generator = torch.Generator().manual_seed(0)
    images = 0.7 + 0.3 * torch.rand(1, 3, 32, 32, generator=generator)
    images[..., :4, :4] = -1

    def too_dark(noisy: torch.Tensor, t: int) -> torch.Tensor:
        painted = torch.full_like(noisy, 0.85)
        painted[..., :4, :4] = -0.9
        return painted

    def texture_of(attempts: int) -> float:
        """Contrast within the region after the last attempt."""
        steps = []
        run(images, too_dark, lambda x: steps.append(x) or x, texture_strength=0.25, attempts=attempts)
        return steps[-1][..., :4, :4].std().item()

    assert texture_of(1) > 0.005
    assert texture_of(2) == pytest.approx(4 * texture_of(1), rel=0.3)


def test_costs_and_frames_are_what_the_settings_say():
    images = torch.ones(1, 3, 32, 32)
    images[..., 14:18, 14:18] = -1
    calls, sizes = [], set()

    def stubborn(noisy: torch.Tensor, t: int) -> torch.Tensor:
        calls.append(t)
        sizes.add(noisy.shape[-1])
        return torch.full_like(noisy, -0.9)

    method = Inpainting(timesteps=(490, 300, 150, 50), spins=3, attempts=2, denoiser_error=0.0)
    result = method.run(images, brightness_context(stubborn, stride=4), lambda x: x)
    assert Counter(calls) == {490: 2, 300: 2, 150: 2, 50: 6} and sizes == {36}
    assert torch.allclose(result.images[..., 14:18, 14:18], torch.tensor(-0.9))


def test_fill_stays_where_the_denoised_image_differs_by_no_more_than_it_errs():
    images = torch.full((1, 3, 32, 32), 0.9)
    images[..., 14:18, 14:18] = -1
    result = run(images, lambda noisy, t: torch.full_like(noisy, 0.95), denoiser_error=0.06)
    assert torch.allclose(result.images, torch.tensor(0.9))
    result = run(images, lambda noisy, t: torch.full_like(noisy, 0.7), denoiser_error=0.06)
    # James-Stein keeps 1 - 0.06^2 / 0.2^2 of the difference.
    assert torch.allclose(result.images[..., 14:18, 14:18], torch.tensor(0.9 - 0.2 * (1 - 0.09)))


def test_no_texture_at_all_where_it_is_switched_off():
    images = 0.7 + 0.3 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[..., :4, :4] = -1
    result = run(images, lambda noisy, t: torch.full_like(noisy, -0.9), texture_strength=0.0, denoiser_error=0.0, attempts=2)
    assert torch.allclose(result.images[..., :4, :4], torch.tensor(-0.9))


def test_a_network_that_overflows_is_an_error_and_not_a_good_part():
    images = torch.ones(1, 3, 32, 32)
    images[..., 14:18, 14:18] = -1
    with pytest.raises(ValueError, match="not finite; use float32 or bfloat16"):
        run(images, lambda noisy, t: torch.full_like(noisy, torch.nan))


@pytest.mark.parametrize(("first", "second", "kept"), [(-0.85, -0.95, -0.85), (-0.95, -0.85, -0.85)])
def test_of_all_attempts_the_one_with_the_lowest_score_counts(first, second, kept):
    images = torch.ones(2, 3, 32, 32)
    images[0, :, 14:18, 14:18] = -1
    levels = iter((first, first, second, second))  # two noise levels in each attempt; both stay defective
    result = run(images, lambda noisy, t: torch.full_like(noisy, next(levels)), denoiser_error=0.0, attempts=2)
    torch.testing.assert_close(result.images[0, :, 14:18, 14:18], torch.full((3, 4, 4), kept))
    assert (result.replaced[0, :, 14:18, 14:18] == 1).all()
    assert torch.equal(result.images[1], images[1]) and not result.replaced[1].any()


def test_no_attempt_leaves_the_images_as_they_are():
    images = -torch.ones(1, 3, 32, 32)
    result = run(images, attempts=0)
    assert torch.equal(result.images, images) and not result.replaced.any()


@pytest.mark.parametrize(("side", "confident"), [(8, True), (16, False)])
def test_a_large_repair_is_not_called_confident(side, confident):
    """16 of 32 pixels squared are a quarter of the image."""
    images = torch.ones(2, 3, 32, 32)
    images[0, :, 8 : 8 + side, 8 : 8 + side] = -1
    context = brightness_context(lambda noisy, t: torch.full_like(noisy, 0.5), batch=2)
    result = Inpainting(timesteps=(1,), spins=1, margin=0, attempts=1, denoiser_error=0.0).run(images, context, lambda x: x)
    assert result.confident.tolist() == [confident, True]  # the other one is good as it is


def test_what_still_scores_as_defective_is_not_called_confident():
    images = torch.ones(1, 3, 32, 32)
    images[..., 8:16, 8:16] = -1
    result = Inpainting(timesteps=(1,), spins=1, attempts=0).run(images, brightness_context(None), lambda x: x)
    assert result.confident.tolist() == [False]
