"""The way from a defective image to a repaired one."""

import numpy as np
import pytest
from diffad.imaging.trajectory import MAX_FRAMES, save_animation, trajectory_row
from PIL import Image


def frame(level: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


@pytest.mark.parametrize("count", [1, 2, 5, 101])
def test_row_begins_with_the_input_and_ends_with_the_repair(count):
    frames, captions = trajectory_row(frame(0), [frame(step) for step in range(1, count + 1)], frame(255))
    levels = [np.asarray(picture)[0, 0, 0] for picture in frames]
    assert len(frames) == len(captions) == min(count + 1, MAX_FRAMES)
    assert levels[0] == 0 and levels[-1] == 255 and levels == sorted(levels)
    assert [int(caption.split()[1]) for caption in captions[1:-1]] == levels[1:-1]


def test_animation_has_every_step_at_the_input_s_size(tmp_path):
    path = tmp_path / "way.gif"
    save_animation(path, frame(0, (30, 20)), [frame(40), frame(80), frame(120)], frame(200, (30, 20)))
    with Image.open(path) as animation:
        assert animation.n_frames == 4 and animation.size == (30, 20) and animation.info["loop"] == 0
        levels = []
        for i in range(animation.n_frames):
            animation.seek(i)
            levels.append(animation.convert("RGB").getpixel((10, 10))[0])
    assert levels == [0, 40, 80, 200]
