"""Masks in image files: which pixels are marked, whatever the levels, the mode and the format."""

import numpy as np
import pytest
from diffad import ImageError
from diffad.imaging.masks import read_mask
from PIL import Image


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mask_of_any_scale_reads_the_same(save_image, value, dtype):
    mask = np.zeros((6, 9), dtype=dtype)
    mask[2:4, 3:5] = value
    result = read_mask(save_image(mask, "mask.png"))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, mask > 0)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA"])
def test_mask_of_any_mode_reads_the_same(save_image, mode):
    mask = np.zeros((6, 9), dtype=bool)
    mask[2:4, 3:5] = True
    image = Image.fromarray(mask).convert(mode)
    np.testing.assert_array_equal(read_mask(save_image(image, "mask.png")), mask)


def test_empty_mask_is_zero(save_image):
    np.testing.assert_array_equal(read_mask(save_image(np.zeros((6, 9), dtype=np.uint8), "mask.png")), np.zeros((6, 9)))


def test_soft_edges_of_a_mask_are_kept(save_image):
    levels = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
    np.testing.assert_allclose(read_mask(save_image(levels, "mask.png")), levels / 255, rtol=1e-6)


def test_class_labels_of_a_mask_are_all_defects(save_image):
    labels = np.tile(np.array([0, 1, 2, 127], dtype=np.uint8), (4, 2))
    np.testing.assert_array_equal(read_mask(save_image(labels, "mask.png")), labels > 0)


def test_mask_is_rotated_like_its_image(save_image):
    mask = np.zeros((10, 16), dtype=np.uint8)
    mask[:3, :5] = 255
    np.testing.assert_array_equal(read_mask(save_image(mask, "mask.png", exif=exif(6))), np.rot90(mask, -1) / 255)


def test_damaged_mask_is_refused(pixels, save_image):
    path = save_image(pixels, "mask.png")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageError, match="mask.png"):
        read_mask(path)
