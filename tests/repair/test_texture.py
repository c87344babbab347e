"""Texture is transferred from where the surroundings look most alike, and from nothing excluded."""

import numpy as np
import pytest
import torch
from diffad.repair.fill import fill_from_surroundings
from diffad.repair.texture import RING_WIDTH, best_shift, halves, transfer_texture
from scipy.ndimage import binary_dilation


def region_at(top: int, left: int, height: int, width: int, size: int = 64) -> torch.Tensor:
    region = torch.zeros(1, 1, size, size)
    region[..., top : top + height, left : left + width] = 1
    return region


def texture_of(images: torch.Tensor, denoised: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Where the repair is all `denoised`."""
    return transfer_texture(images, denoised, torch.ones_like(region), 0.0, region, region, region)


def test_best_shift_is_that_of_an_exhaustive_search():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 40, 48))
    excluded = np.zeros((40, 48), bool)
    excluded[14:20, 20:27] = excluded[2:5, 3:9] = True
    box = (slice(14 - RING_WIDTH, 20 + RING_WIDTH), slice(20 - RING_WIDTH, 27 + RING_WIDTH))
    inside = np.zeros(excluded.shape, bool)
    inside[14:20, 20:27] = True
    inside = inside[box]
    ring = binary_dilation(inside, iterations=RING_WIDTH) & ~excluded[box]
    costs = {}
    height, width = inside.shape
    for row in range(40 - height + 1):
        for column in range(48 - width + 1):
            there = (slice(row, row + height), slice(column, column + width))
            if not (excluded[there] & (inside | ring)).any():
                difference = image[:, *there] - image[:, *box]
                costs[row - box[0].start, column - box[1].start] = np.square(difference)[:, ring].sum()
    assert best_shift(image, excluded, box, inside) == min(costs, key=costs.get)


def test_a_repeating_pattern_is_continued_exactly():
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(3, 16, 16, generator=generator)
    image = tile.repeat(1, 4, 4)[None]
    region = region_at(24, 24, 8, 10)
    damaged = torch.where(region > 0, torch.zeros_like(image), image)
    smooth = torch.zeros_like(image)
    assert torch.allclose(smooth + texture_of(damaged, smooth, region), torch.where(region > 0, image, smooth), atol=1e-6)


def test_each_image_and_each_region_is_treated_alone():
    generator = torch.Generator().manual_seed(1)
    images, smooth = torch.randn(2, 3, 64, 64, generator=generator), torch.zeros(2, 3, 64, 64)
    regions = torch.cat([torch.maximum(region_at(10, 10, 6, 6), region_at(40, 40, 5, 9)), region_at(30, 8, 12, 7)])
    texture = texture_of(images, smooth, regions)
    assert (texture[(regions == 0).expand_as(texture)] == 0).all() and (texture[(regions > 0).expand_as(texture)] != 0).all()
    assert torch.equal(texture_of(images[1:], smooth[1:], regions[1:]), texture[1:])


def test_pixels_that_meet_at_a_corner_share_one_source_patch():
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, 64, 64, generator=generator)
    region = torch.maximum(region_at(20, 20, 4, 4), region_at(24, 24, 4, 4))
    texture = texture_of(image, torch.zeros_like(image), region)[0]
    # Both squares come from places that lie to each other as they do.
    first, second = (
        [
            (row, column)
            for row in range(61)
            for column in range(61)
            if torch.equal(image[0, :, row : row + 4, column : column + 4], part)
        ]
        for part in (texture[:, 20:24, 20:24], texture[:, 24:28, 24:28])
    )
    assert len(first) == len(second) == 1 and np.subtract(second[0], first[0]).tolist() == [4, 4]


def test_no_texture_where_everything_is_excluded():
    images = torch.randn(1, 3, 64, 64)
    assert texture_of(images, torch.zeros_like(images), region_at(0, 0, 64, 64)).abs().max() == 0


def test_a_region_too_large_for_any_source_patch_gets_texture_in_parts():
    """Of a pattern that repeats, every part is found elsewhere: as a whole only a shift by its period would do."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(3, 16, 16, generator=generator).repeat(1, 6, 6)[None]  # (1, 3, 96, 96)
    region = region_at(0, 30, 96, 10, size=96)  # from top to bottom, without room below or above
    region[..., 20:76, 40:60] = 1
    texture = texture_of(torch.where(region > 0, torch.zeros_like(image), image), torch.zeros_like(image), region)
    inside = (region > 0).expand_as(image)
    assert (texture[~inside] == 0).all() and (texture[inside] != 0).all()
    assert texture[inside].std().item() == pytest.approx(image.std().item(), rel=0.1)


def test_a_fill_gets_what_a_fill_of_the_source_patch_lacks():
    """Of a pattern that repeats, the fill and the texture together are the pattern, whatever it is: seamless cloning."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 16, 16, generator=generator).repeat(1, 4, 4)[None]
    region, target = region_at(24, 24, 8, 10), region_at(22, 22, 12, 14)
    filled = fill_from_surroundings(image, region)
    denoised = torch.randn(1, 3, 64, 64, generator=generator)
    weight = torch.zeros_like(region)
    texture = transfer_texture(torch.where(region > 0, 9.0, image), denoised, weight, 100.0, region, target, region)
    assert torch.allclose(filled + texture, image, atol=1e-5)
    assert (texture[(region == 0).expand_as(texture)] == 0).all()


def test_structure_of_the_source_patch_is_not_transferred():
    """A bar across the source patch, which the denoised image shows and a fill can't."""
    image = 0.02 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    denoised = torch.zeros_like(image)
    for bar in (slice(26, 28), slice(58, 60)):
        image[..., bar, :] += 1
        denoised[..., bar, :] = 1
    region = region_at(24, 24, 8, 10)
    nothing = torch.zeros_like(region)
    texture = transfer_texture(image, denoised, nothing, 0.06, region, region, region)
    assert 0 < texture.abs().max() < 0.2
    assert transfer_texture(image, denoised, nothing, 100.0, region, region, region).abs().max() > 0.3


def test_mixtures_get_texture_in_proportion():
    generator = torch.Generator().manual_seed(0)
    image, denoised = torch.randn(2, 1, 3, 64, 64, generator=generator)
    region = region_at(24, 24, 8, 10)
    none, half, full = (
        transfer_texture(image, denoised, torch.full_like(region, weight), 100.0, region, region, region)
        for weight in (0.0, 0.5, 1.0)
    )
    assert torch.allclose(half, (none + full) / 2, atol=1e-6) and not torch.allclose(none, full, atol=0.1)


def test_halves_share_out_a_part_across_its_longer_side():
    part = region_at(5, 8, 7, 21)[0, 0].bool().numpy()
    first, second = halves(part)
    assert not (first & second).any() and np.array_equal(first | second, part)
    assert [np.ptp(np.nonzero(half)[1]) + 1 for half in (first, second)] == [10, 11]
    assert [np.ptp(np.nonzero(half)[0]) + 1 for half in (first, second)] == [7, 7]
