"""Tiles of large images, and their maps blended without seams."""

import numpy as np
import pytest
import torch
from diffad.imaging.tensors import cut
from diffad.scoring.tiling import add_tiles, blend_weights, tile_corners, tile_starts, window, working_size

SIZES = [(32, 32), (32, 33), (45, 32), (64, 64), (70, 131)]
TILE = (32, 32)


def blend(images: torch.Tensor, score, overlap: float) -> torch.Tensor:
    """Map of the first image, put together from the scores of its tiles."""
    size = tuple(images.shape[-2:])
    corners = tile_corners(size, TILE, overlap)
    canvas = torch.zeros(size)
    add_tiles(canvas, score(cut(images[:1], corners, TILE)), torch.from_numpy(blend_weights(size, corners, TILE)), corners)
    return canvas


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("length", [32, 33, 63, 64, 65, 200])
def test_tiles_cover_the_image_evenly_with_the_overlap_and_no_more_tiles_than_needed(length, overlap):
    starts = tile_starts(length, 32, overlap)
    assert starts[0] == 0 and starts[-1] == length - 32
    steps = np.diff(starts)
    longest = max(1, int(32 * (1 - overlap)))
    assert (steps > 0).all() and (steps <= longest).all()
    assert len(starts) == 1 or (len(starts) - 2) * longest < length - 32
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"), [((31, 32, 0.2), "larger than"), ((64, 32, 1.0), "overlap"), ((64, 32, -0.1), "overlap")]
)
def test_impossible_tiles_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tile_starts(*arguments)


@pytest.mark.parametrize(("size", "expected"), [((100, 100), (64, 64)), ((100, 250), (64, 160)), ((333, 100), (213, 64))])
def test_working_size_keeps_the_aspect(size, expected):
    assert working_size(size, 64) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("size", SIZES)
def test_weights_sum_to_one_so_that_a_constant_stays_constant(size, overlap):
    blended = blend(torch.zeros(1, 3, *size), lambda tiles: torch.full((len(tiles), *TILE), 7.5), overlap)
    torch.testing.assert_close(blended, torch.full(size, 7.5))


@pytest.mark.parametrize("size", SIZES)
def test_score_of_single_pixels_is_the_same_in_tiles_as_on_the_whole(size):
    images = torch.rand(1, 3, *size)
    torch.testing.assert_close(blend(images, lambda x: x.square().mean(1), 0.25), images.square().mean(1)[0])


def test_one_tile_is_left_bit_for_bit():
    images = torch.rand(1, 3, *TILE)
    assert torch.equal(blend(images, lambda x: x[:, 0], 0.25), images[0, 0])


def test_blending_hides_what_a_score_gets_wrong_at_the_border_of_tiles():
    """A score that is 1 at borders of tiles and 0 inside: butted tiles have full seams, blended ones hardly any."""
    border = torch.ones(TILE)
    border[1:-1, 1:-1] = 0
    blended = blend(torch.zeros(1, 3, 96, 96), lambda tiles: border.expand(len(tiles), *TILE), 0.5)
    assert blended[1:-1, 1:-1].max() < 0.02
    butted = blend(torch.zeros(1, 3, 96, 96), lambda tiles: border.expand(len(tiles), *TILE), 0.0)
    assert butted[1:-1, 1:-1].max() == 1


def test_blended_map_of_a_smooth_score_has_no_steps():
    """Tiles that disagree by a constant each: between neighbouring pixels the map changes a little at a time."""
    offsets = torch.arange(9).view(-1, 1, 1) % 2
    steps = []
    for overlap in (0.0, 0.5):
        blended = blend(torch.zeros(1, 3, 64, 64), lambda tiles: offsets[: len(tiles)].expand(-1, *TILE).float(), overlap)
        steps.append(max(blended.diff(dim=0).abs().max(), blended.diff(dim=1).abs().max()))
    assert steps[0] == 1 and steps[1] < 0.12


def test_window_is_symmetric_and_positive():
    weights = window((32, 20))
    assert weights.min() > 0 and weights.argmax() // 20 in (15, 16)
    np.testing.assert_allclose(weights, weights[::-1, ::-1])
