"""Content from good images, blended into the place of a defect."""

import dataclasses

import numpy as np
import pytest
import torch
from brightness_models import brightness_context
from diffad import ReferenceImages
from diffad.repair.inpainting import Inpainting
from diffad.repair.proposals import (
    GrowthLimit,
    aligned_contents,
    blend_in,
    blend_in_windows,
    grow_region,
    grow_with_contents,
    with_surrounding_levels,
)
from diffad.repair.windows import Window
from tiny_pipeline import smooth_images, tiny_pipeline

SIDE = 32
LIMITS = [GrowthLimit(sigma=1.0, least=0.15, factor=2.0)]


def in_range(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def parts() -> torch.Tensor:
    """`(5, 3, 32, 32)` good parts."""
    return torch.stack([in_range(image) for image in smooth_images(5, seed=3)])


def propose(image: torch.Tensor, region: torch.Tensor, references: torch.Tensor, count: int) -> torch.Tensor:
    contents = with_surrounding_levels(image, region, aligned_contents(image, region, references, False, count))
    return blend_in(image, region, contents)


@pytest.fixture
def region() -> torch.Tensor:
    region = torch.zeros(1, SIDE, SIDE)
    region[:, 12:20, 10:18] = 1
    return region


def test_content_comes_back_under_another_light_and_nothing_else_changes(parts, region):
    damaged = torch.where(region > 0, 1.0, 0.9 * parts[2] + 0.05)
    (best, *others) = propose(damaged, region, parts, count=3)
    truth = 0.9 * parts[2] + 0.05
    assert (best - truth)[:, region[0] > 0].abs().mean() < 0.02
    assert len(others) <= 2
    for proposal in (best, *others):
        assert torch.equal(proposal[:, region[0] == 0], damaged[:, region[0] == 0])


def test_what_differs_at_the_border_is_continued_smoothly(region):
    """Between image and content lies a ramp that is harmonic, so that the blended content is the ramp's image exactly."""
    content = torch.full((3, SIDE, SIDE), 0.1)
    ramp = torch.linspace(-0.3, 0.3, SIDE).expand(3, SIDE, SIDE)
    damaged = torch.where(region > 0, 1.0, content + ramp)
    for proposal in propose(damaged, region, content[None], count=1):
        assert torch.allclose(proposal, content + ramp, atol=1e-3)


def test_nothing_is_proposed_for_a_whole_image(parts):
    assert propose(parts[0], torch.ones(1, SIDE, SIDE), parts, 3).shape == (0, 3, SIDE, SIDE)


def test_a_region_in_several_windows_takes_their_contents_one_after_the_other(parts):
    """A white band across two overlapping windows: the second continues what the first has made, and nothing of the band."""
    image = torch.cat([parts[0], parts[0].flip(-1)], dim=2)[..., : 2 * SIDE - 8]  # (3, 32, 56)
    region = torch.zeros(1, *image.shape[1:])
    region[:, 12:20, 4:-4] = 1
    image = torch.where(region > 0, 1.0, image)
    parts_of_band = np.zeros((2, SIDE, SIDE), dtype=bool)
    parts_of_band[0, 12:20, 4:], parts_of_band[1, 12:20, 8:-4] = True, True
    windows = [Window(0, 0, left, of_window) for left, of_window in zip((0, SIDE - 8), parts_of_band)]
    first, second = blend_in_windows(image, region, windows, [parts[1:2], parts[2:4]])
    for number, repaired in enumerate((first, second)):
        left = blend_in(image[..., :SIDE], region[..., :SIDE], parts[1:2])[0]  # its only content makes both attempts
        torch.testing.assert_close(repaired[..., :SIDE], left)
        right = torch.cat([left[..., -8:], image[..., SIDE:]], dim=2)
        still_to_repair = torch.cat([torch.zeros(1, SIDE, 8), region[..., SIDE:]], dim=2)
        expected = blend_in(right, still_to_repair, parts[2 + number][None])[0]
        torch.testing.assert_close(repaired[..., SIDE - 8 :], expected)


def test_one_window_of_all_is_as_without_windows(parts, region):
    contents = parts[1:4]
    windows = [Window(0, 0, 0, region[0].bool().numpy())]
    assert torch.equal(blend_in_windows(parts[0], region, windows, [contents]), blend_in(parts[0], region, contents))


def test_a_region_grows_along_what_every_content_contradicts(region):
    """A scratch that runs on beyond the region, a spot apart from it, and a place that differs from one content only."""
    contents = 0.05 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    image = contents[0].clone()
    image[:, 14:17, 10:28] = 0.9  # the scratch; of its 18 columns the region holds 8
    image[:, 26:29, 26:29] = 0.9
    contents[1][:, 20:24, 12:15] = -0.9
    grown = grow_region(image, region, contents, LIMITS)
    assert grown[0, 14:17, 10:28].all() and (grown >= region).all()
    assert not grown[0, 24:].any() and not grown[0, :, 31:].any()
    assert not grown[0, 23:].any() and grown.sum() < 3 * region.sum()


def test_where_good_images_differ_as_much_everywhere_nothing_grows(region):
    noise = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grow_region(noise[0], region, noise[1:], LIMITS), region)
    assert torch.equal(grow_region(noise[0], region, noise[:0], LIMITS), region)


def shade(side: int, radius: float, depth: float) -> torch.Tensor:
    """`(side, side)`, a dark spot in the middle that fades like a Gaussian."""
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    return torch.from_numpy(-depth * np.exp(-(rows**2 + columns**2) / radius**2)).float()


def square(side: int, half: int) -> torch.Tensor:
    region = torch.zeros(1, side, side)
    region[:, side // 2 - half : side // 2 + half, side // 2 - half : side // 2 + half] = 1
    return region


def test_a_faint_shade_in_noise_is_seen_at_the_coarse_scale_only():
    noise = 0.06 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    depth, region = shade(128, radius=14, depth=0.2), square(128, half=6)
    fine = grow_region(depth.expand(3, -1, -1), region, noise, [GrowthLimit(1.0, 0.15, 2.0)])
    both = grow_region(depth.expand(3, -1, -1), region, noise, [GrowthLimit(1.0, 0.15, 2.0), GrowthLimit(4.0, 0.02, 2.0)])
    assert fine[0][depth < -0.05].mean() < 0.5 and both[0][depth < -0.05].mean() > 0.95
    assert both[0][depth > -0.005].mean() < 0.01


def test_a_structure_beside_its_place_is_no_shade():
    """Stripes near the region that are a pixel off: differences as large as stripes are, whose means are nothing."""
    stripes = 0.5 * torch.sin(torch.arange(96) * 2 * torch.pi / 4).expand(3, 96, 96)
    content, image, region = torch.zeros(3, 96, 96), torch.zeros(3, 96, 96), square(96, half=6)
    near = torch.zeros(96, 96, dtype=torch.bool)
    near[40:56, 54:70] = True
    content[:, near], image[:, near] = stripes[:, near], stripes.roll(1, dims=-1)[:, near]
    assert torch.equal(grow_region(image, region, content[None], [GrowthLimit(4.0, 0.1, 2.0)]), region)
    assert not torch.equal(grow_region(image, region, content[None], [GrowthLimit(0.5, 0.1, 2.0)]), region)


def test_what_good_images_disagree_on_counts_only_beyond_their_disagreement():
    """To the right of the region one good image is as the rest, the other darker, and the image brighter than both."""
    image, region = torch.zeros(3, 64, 64), square(64, half=8)
    contents = torch.zeros(2, 3, 64, 64)
    image[:, 24:40, 40:50], contents[1, :, 24:40, 40:50] = 0.3, -0.4
    alone = grow_region(image, region, contents[:1], LIMITS)
    assert alone[0, 28:36, 40:48].all()
    assert torch.equal(grow_region(image, region, contents, LIMITS), region)
    assert torch.equal(grow_region(2 * image, region, contents, LIMITS)[0, 28:36, 40:48], alone[0, 28:36, 40:48])


def test_a_step_beside_the_region_counts_as_far_as_its_gaussian_mean_exceeds_the_limit():
    """The mean of a step of 0.4 falls to 0.1 by 0.6745 sigma beyond it; what the region holds has no part in it."""
    image, region = torch.zeros(3, 64, 96), torch.zeros(1, 64, 96)
    region[:, :, :20], image[:, :, :20], image[:, :, 20:26] = 1, -0.9, 0.4  # the step ends at 25.5
    (grown,) = grow_region(image, region, torch.zeros(1, 3, 64, 96), [GrowthLimit(2.0, 0.1, 2.0)])
    last = int(25.5 + 0.6745 * 2.0) + 2  # and two pixels, where defects fade
    assert grown[:, : last + 1].all() and not grown[:, last + 1 :].any()


def test_contents_take_contrast_and_brightness_of_what_surrounds_the_region(parts, region):
    image = torch.where(region > 0, -1.0, 0.8 * parts[2] + 0.1)
    (matched,) = with_surrounding_levels(image, region, parts[2:3])
    torch.testing.assert_close(matched, 0.8 * parts[2] + 0.1, atol=1e-6, rtol=0)
    assert with_surrounding_levels(image, region, parts[:0]).shape == (0, 3, SIDE, SIDE)


def test_levels_that_were_matched_to_a_shade_are_matched_again_outside_of_it():
    """The truth is the content; levels beside the region are the shade's, so that one round leaves a part of it."""
    content = 0.1 * torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    image, region = content[0] + shade(96, radius=16, depth=0.3), square(96, half=6)
    before = with_surrounding_levels(image, region, content)
    grown, after = grow_with_contents(image, region, content, [GrowthLimit(4.0, 0.02, 2.0)])
    inside = region[0] > 0
    assert (before - content)[0, :, inside].mean() < -0.05
    assert (after - content)[0, :, inside].mean().abs() < 0.02
    assert grown[0][shade(96, 16, 0.3) < -0.1].all()


def test_repair_takes_the_good_image_where_it_scores_lower(parts, region):
    """The model knows its own prediction, white, as darker than the good part that the reference shows."""
    truth = torch.ones(1, 3, SIDE, SIDE)
    damaged = torch.where(region[None] > 0, -1.0, truth)

    def grey(noisy: torch.Tensor, t: int) -> torch.Tensor:
        return torch.full_like(noisy, 0.5)

    def distance(images: torch.Tensor) -> torch.Tensor:
        return images.square().mean(dim=1)

    context = brightness_context(grey, distance)
    settings = {"timesteps": (2, 1), "spins": 1, "margin": 0, "region_level": 0.1, "attempts": 1}
    without = Inpainting(**settings).run(damaged, context, lambda x: x)
    with_references = dataclasses.replace(context, references=truth)
    result = Inpainting(**settings).run(damaged, with_references, lambda x: x)
    assert (result.images - truth).abs().max() < (without.images - truth).abs().max()
    assert torch.allclose(result.images, truth, atol=1e-3)
    none = Inpainting(**settings, proposals=0).run(damaged, with_references, lambda x: x)
    assert torch.equal(none.images, without.images)


def test_a_pipeline_repairs_each_image_alike_in_any_batch_and_the_same_again():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(20, seed=7), smoothing_sigma=1.0)
    references = ReferenceImages((SIDE, SIDE), (0,) * 5)
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in smooth_images(5, seed=3)])
    references.images.copy_(torch.from_numpy(pixels))
    without = pipe.digest
    pipe.register_modules(references=references)
    assert pipe.digest == without  # scores don't depend on them
    images = [np.asarray(image).copy() for image in smooth_images(3, seed=11)]
    for image in images:
        image[8:16, 12:20] = 255
    options = {"false_alarm_rate": 0.3, "intermediate_steps": "all"}
    together = pipe.reconstruct(images, **options)
    again = pipe.reconstruct(images, **options)
    alone = [pipe.reconstruct(image, batch_size=1, **options) for image in images]
    for i in range(3):
        assert np.array_equal(together.images[i], again.images[i])
        assert np.array_equal(together.images[i], alone[i].images[0])
        assert len(together.intermediates[i]) == len(alone[i].intermediates[0])
