"""Grain is borrowed from where the surroundings look most alike, and from nothing unsound."""

import numpy as np
import pytest
import torch
from diffad.repair.fill import fill_from_surroundings
from diffad.repair.texture import RING, _halves, best_shift, transfer_grain
from scipy.ndimage import binary_dilation


def region_at(top: int, left: int, height: int, width: int, size: int = 64) -> torch.Tensor:
    region = torch.zeros(1, 1, size, size)
    region[..., top : top + height, left : left + width] = 1
    return region


def grain_of(images: torch.Tensor, denoised: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Where the repair is all `denoised`."""
    return transfer_grain(images, denoised, torch.ones_like(region), 0.0, region, region, region)


def test_best_shift_is_that_of_an_exhaustive_search():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 40, 48))
    unsound = np.zeros((40, 48), bool)
    unsound[14:20, 20:27] = unsound[2:5, 3:9] = True
    box = (slice(14 - RING, 20 + RING), slice(20 - RING, 27 + RING))
    reach = np.zeros(unsound.shape, bool)
    reach[14:20, 20:27] = True
    reach = reach[box]
    ring = binary_dilation(reach, iterations=RING) & ~unsound[box]
    costs = {}
    height, width = reach.shape
    for row in range(40 - height + 1):
        for column in range(48 - width + 1):
            there = (slice(row, row + height), slice(column, column + width))
            if not (unsound[there] & (reach | ring)).any():
                difference = image[:, *there] - image[:, *box]
                costs[row - box[0].start, column - box[1].start] = np.square(difference)[:, ring].sum()
    assert best_shift(image, unsound, box, reach) == min(costs, key=costs.get)


def test_a_repeating_pattern_is_continued_exactly():
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(3, 16, 16, generator=generator)
    image = tile.repeat(1, 4, 4)[None]
    region = region_at(24, 24, 8, 10)
    damaged = torch.where(region > 0, torch.zeros_like(image), image)
    smooth = torch.zeros_like(image)
    assert torch.allclose(smooth + grain_of(damaged, smooth, region), torch.where(region > 0, image, smooth), atol=1e-6)


def test_each_image_and_each_region_is_treated_alone():
    generator = torch.Generator().manual_seed(1)
    images, smooth = torch.randn(2, 3, 64, 64, generator=generator), torch.zeros(2, 3, 64, 64)
    regions = torch.cat([torch.maximum(region_at(10, 10, 6, 6), region_at(40, 40, 5, 9)), region_at(30, 8, 12, 7)])
    grain = grain_of(images, smooth, regions)
    assert (grain[(regions == 0).expand_as(grain)] == 0).all() and (grain[(regions > 0).expand_as(grain)] != 0).all()
    assert torch.equal(grain_of(images[1:], smooth[1:], regions[1:]), grain[1:])


def test_pixels_that_meet_at_a_corner_borrow_from_one_place():
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, 64, 64, generator=generator)
    region = torch.maximum(region_at(20, 20, 4, 4), region_at(24, 24, 4, 4))
    grain = grain_of(image, torch.zeros_like(image), region)[0]
    # Both squares come from places that lie to each other as they do.
    first, second = (
        [
            (row, column)
            for row in range(61)
            for column in range(61)
            if torch.equal(image[0, :, row : row + 4, column : column + 4], part)
        ]
        for part in (grain[:, 20:24, 20:24], grain[:, 24:28, 24:28])
    )
    assert len(first) == len(second) == 1 and np.subtract(second[0], first[0]).tolist() == [4, 4]


def test_no_grain_where_nothing_is_sound():
    images = torch.randn(1, 3, 64, 64)
    assert grain_of(images, torch.zeros_like(images), region_at(0, 0, 64, 64)).abs().max() == 0


def test_a_region_too_large_for_any_place_borrows_in_parts():
    """Of a pattern that repeats, every part comes back from another place: as a whole only a shift by its period would do."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(3, 16, 16, generator=generator).repeat(1, 6, 6)[None]  # (1, 3, 96, 96)
    region = region_at(0, 30, 96, 10, size=96)  # from top to bottom, without room below or above
    region[..., 20:76, 40:60] = 1
    grain = grain_of(torch.where(region > 0, torch.zeros_like(image), image), torch.zeros_like(image), region)
    inside = (region > 0).expand_as(image)
    assert (grain[~inside] == 0).all() and (grain[inside] != 0).all()
    assert grain[inside].std().item() == pytest.approx(image.std().item(), rel=0.1)


def test_filled_places_borrow_what_a_fill_lacks_of_the_lender():
    """Of a pattern that repeats, the fill and the borrowed grain together are the pattern, whatever it is: seamless cloning."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 16, 16, generator=generator).repeat(1, 4, 4)[None]
    region, wanted = region_at(24, 24, 8, 10), region_at(22, 22, 12, 14)
    filled = fill_from_surroundings(image, region)
    denoised = torch.randn(1, 3, 64, 64, generator=generator)
    weight = torch.zeros_like(region)
    grain = transfer_grain(torch.where(region > 0, 9.0, image), denoised, weight, 100.0, region, wanted, region)
    assert torch.allclose(filled + grain, image, atol=1e-5)
    assert (grain[(region == 0).expand_as(grain)] == 0).all()


def test_structure_of_the_lender_is_not_lent():
    """A bar across the lender's place, which the denoised image shows and a fill can't."""
    image = 0.02 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    denoised = torch.zeros_like(image)
    for bar in (slice(26, 28), slice(58, 60)):
        image[..., bar, :] += 1
        denoised[..., bar, :] = 1
    region = region_at(24, 24, 8, 10)
    nothing = torch.zeros_like(region)
    grain = transfer_grain(image, denoised, nothing, 0.06, region, region, region)
    assert 0 < grain.abs().max() < 0.2
    assert transfer_grain(image, denoised, nothing, 100.0, region, region, region).abs().max() > 0.3


def test_mixtures_borrow_in_proportion():
    generator = torch.Generator().manual_seed(0)
    image, denoised = torch.randn(2, 1, 3, 64, 64, generator=generator)
    region = region_at(24, 24, 8, 10)
    none, half, full = (
        transfer_grain(image, denoised, torch.full_like(region, weight), 100.0, region, region, region)
        for weight in (0.0, 0.5, 1.0)
    )
    assert torch.allclose(half, (none + full) / 2, atol=1e-6) and not torch.allclose(none, full, atol=0.1)


def test_halves_share_out_a_part_across_its_longer_side():
    part = region_at(5, 8, 7, 21)[0, 0].bool().numpy()
    first, second = _halves(part)
    assert not (first & second).any() and np.array_equal(first | second, part)
    assert [np.ptp(np.nonzero(half)[1]) + 1 for half in (first, second)] == [10, 11]
    assert [np.ptp(np.nonzero(half)[0]) + 1 for half in (first, second)] == [7, 7]
