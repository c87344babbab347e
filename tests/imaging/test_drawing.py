"""Heat maps mean the same on every image."""

import numpy as np
import pytest
from diffad.imaging.drawing import filmstrip, heat_map, outline, overlay, save_sheet
from PIL import Image


def test_heat_depends_on_the_threshold_and_not_on_the_image():
    cool = heat_map(np.full((4, 4), 0.1), threshold=5.0)
    assert cool.max() < 40  # a good part stays dark although its map has a maximum
    levels = heat_map(np.array([[-3.0, 0.0, 2.5, 5.0, 10.0, 99.0]]), threshold=5.0)[0].sum(axis=1, dtype=int)
    assert levels[0] == levels[1] and levels[4] == levels[5]
    assert (np.diff(levels[1:5]) > 0).all()


@pytest.mark.parametrize("threshold", [0.0, -3.0])
def test_heat_rises_through_a_threshold_of_any_sign(threshold):
    """As on a positive one: dark on the normal level, half bright at the threshold, brightest as far above it."""
    expected = heat_map(np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, 9.0]]), threshold=1.0)
    shifted = heat_map(threshold - 1 + np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, 9.0]]), threshold)
    np.testing.assert_array_equal(shifted, expected)


def test_overlay_leaves_normal_pixels_as_they_are():
    image = np.full((2, 3, 3), 120, dtype=np.uint8)
    drawn = overlay(image, np.array([[-1.0, 0.0, 10.0], [0.0, 0.0, 0.0]]), threshold=5.0)
    assert (drawn[:, :2] == 120).all() and (drawn[0, 2] != 120).any()


def test_outline_draws_only_the_inner_border():
    mask = np.zeros((6, 6), dtype=bool)
    mask[1:5, 1:5] = True
    drawn = outline(np.zeros((6, 6, 3), dtype=np.uint8), mask, (0, 255, 0))
    green = drawn[..., 1] == 255
    assert green.sum() == 12 and not green[2:4, 2:4].any() and not green[~mask].any()


def test_outline_is_as_wide_as_asked():
    drawn = outline(np.zeros((9, 9, 3), dtype=np.uint8), np.ones((9, 9), dtype=bool), (0, 255, 0), width=2)
    green = drawn[..., 1] == 255
    assert green.sum() == 81 - 25 and not green[2:7, 2:7].any()


def test_filmstrip_lays_frames_side_by_side_in_the_shape_of_the_first():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sizes = [(200, 100), (64, 64), (400, 200)]  # intermediate images come at the model's resolution
    strip = np.asarray(filmstrip([Image.new("RGB", *pair) for pair in zip(sizes, colours)], ["a", "b", "c"], height=60))
    ends = []
    for colour in colours:
        rows, columns = np.nonzero((strip == colour).all(axis=2))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (60, 120) and len(rows) == 60 * 120
        ends += [columns.min(), columns.max()]
    assert ends == sorted(ends)
    assert (strip[rows.max() + 1 :] < 128).any()  # captions below


def test_long_labels_of_a_filmstrip_are_wrapped_inside_their_frames():
    frames = [Image.new("RGB", (40, 40), "white")] * 2
    short, long = (filmstrip(frames, [label, ""], height=100) for label in ("step 1", "step 1 of a great many steps"))
    assert long.height > short.height and long.width == short.width
    dark = (np.asarray(long.convert("L")) < 128).nonzero()[1]
    assert dark.max() < long.width / 2


def test_filmstrip_needs_a_label_per_frame():
    with pytest.raises(ValueError, match="1 frames and 2 labels"):
        filmstrip([Image.new("RGB", (8, 8))], ["a", "b"])
    with pytest.raises(ValueError, match="0 frames"):
        filmstrip([], [])


def test_sheet_is_written(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    save_sheet(tmp_path / "sheet.png", ("a", "b"), [("first", [picture, picture]), ("second", [picture, picture])])
    assert Image.open(tmp_path / "sheet.png").size[0] > 100
