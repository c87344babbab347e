"""Content from good images, blended into the place of a defect."""

import dataclasses

import numpy as np
import pytest
import torch
from brightness_models import brightness_context
from diffad import ReferenceImages
from diffad.repair.inpainting import Inpainting
from diffad.repair.proposals import aligned_contents, blend_in, blend_in_windows, grow_region
from diffad.repair.windows import Window
from tiny_pipeline import smooth_images, tiny_pipeline

SIDE = 32


def in_range(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def parts() -> torch.Tensor:
    """`(5, 3, 32, 32)` good parts."""
    return torch.stack([in_range(image) for image in smooth_images(5, seed=3)])


def propose(image: torch.Tensor, region: torch.Tensor, references: torch.Tensor, count: int) -> torch.Tensor:
    return blend_in(image, region, aligned_contents(image, region, references, False, count))


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
    grown = grow_region(image, region, contents, least=0.15, factor=4.0)
    assert grown[0, 14:17, 10:28].all() and (grown >= region).all()
    assert not grown[0, 24:].any() and not grown[0, :, 31:].any()
    assert not grown[0, 23:].any() and grown.sum() < 3 * region.sum()


def test_where_good_images_differ_as_much_everywhere_nothing_grows(region):
    noise = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grow_region(noise[0], region, noise[1:], least=0.15, factor=4.0), region)
    assert torch.equal(grow_region(noise[0], region, noise[:0], least=0.15, factor=4.0), region)


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
