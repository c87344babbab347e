"""Heat maps mean the same on every image."""

import numpy as np
from diffad.visualization import heat_map, outline, overlay, save_sheet
from PIL import Image


def test_heat_depends_on_the_threshold_and_not_on_the_image():
    cool = heat_map(np.full((4, 4), 0.1), threshold=5.0)
    assert cool.max() < 40  # a good part stays dark although its map has a maximum
    levels = heat_map(np.array([[-3.0, 0.0, 2.5, 5.0, 10.0, 99.0]]), threshold=5.0)[0].sum(axis=1, dtype=int)
    assert levels[0] == levels[1] and levels[4] == levels[5]
    assert (np.diff(levels[1:5]) > 0).all()


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


def test_sheet_is_written(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    save_sheet(tmp_path / "sheet.png", ("a", "b"), [("first", [picture, picture]), ("second", [picture, picture])])
    assert Image.open(tmp_path / "sheet.png").size[0] > 100
