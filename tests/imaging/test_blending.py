"""Changes at the model's resolution, carried over to images of any size."""

import numpy as np
import pytest
import torch
from diffad.imaging.blending import blend_change
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from PIL import Image
from scipy.ndimage import gaussian_filter


@pytest.mark.parametrize("size", [(128, 90), (200, 130), (64, 300)])
def test_a_change_carried_over_is_what_the_model_sees_again(size, monkeypatch):
    """Fine detail survives the way to the image's own size and back; nothing changes where the model changed nothing."""
    rng = np.random.default_rng(0)
    levels = gaussian_filter(rng.uniform(0, 255, (*size, 3)), (0.7, 0.7, 0))
    original = Image.fromarray(levels.round().astype(np.uint8))
    before = to_model_range(torch.from_numpy(resize_rgb(original, (64, 64)).copy()))
    after, replaced = before.clone(), torch.zeros(1, 64, 64)
    after[:, 20:40, 20:40] = torch.from_numpy(gaussian_filter(rng.normal(0, 0.5, (3, 20, 20)), (0, 0.8, 0.8))).clamp(-1, 1)
    replaced[:, 20:40, 20:40] = 1
    carried = blend_change(original, before, after, replaced)

    def error(image: Image.Image) -> float:
        """Root mean square within the change, in grey levels, of what the model sees."""
        seen = to_model_range(torch.from_numpy(resize_rgb(image, (64, 64)).copy()))
        return (seen - after)[:, 22:38, 22:38].square().mean().sqrt().item() * 127.5

    assert carried.size == original.size and error(carried) < 2
    outside = np.ones(size, bool)
    outside[int(size[0] * 18 / 64) : int(size[0] * 42 / 64) + 1, int(size[1] * 18 / 64) : int(size[1] * 42 / 64) + 1] = False
    assert np.array_equal(np.asarray(carried)[outside], np.asarray(original)[outside])
    monkeypatch.setattr("diffad.imaging.blending.BACK_PROJECTIONS", 0)
    assert error(blend_change(original, before, after, replaced)) > 3 * error(carried)


def test_nothing_of_the_original_remains_where_it_was_replaced_by_the_like():
    """Detail below the model's resolution goes, though the model sees no change, and the rest stays bit for bit."""
    levels = np.full((128, 128, 3), 250, np.uint8)
    levels[::2] += 4  # averages to 252 at the model's resolution, but for the border
    original = Image.fromarray(levels)
    before = to_model_range(torch.from_numpy(resize_rgb(original, (64, 64)).copy()))
    replaced = torch.zeros(1, 64, 64)
    replaced[:, 20:40, 20:40] = 1
    carried = np.asarray(blend_change(original, before, before, replaced))
    assert np.ptp(carried[44:76, 44:76]) == 0
    assert np.array_equal(carried[:36], levels[:36]) and np.array_equal(carried[:, 84:], levels[:, 84:])
    assert np.array_equal(np.asarray(blend_change(original, before, before, torch.zeros(1, 64, 64))), levels)
