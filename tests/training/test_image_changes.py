"""Changes of light, focus and position that benchmarks make in images, against plain formulas."""

import numpy as np
import pytest
from diffad_training.benchmarks import image_changes
from PIL import Image
from scipy.ndimage import gaussian_filter


@pytest.fixture
def image(pixels) -> Image.Image:
    return Image.fromarray(pixels)  # 30 x 20


def difference(image: Image.Image, expected: np.ndarray) -> float:
    assert image.mode == "RGB"
    return np.abs(np.asarray(image, dtype=float) - expected.clip(0, 255)).max()


def test_brightness_gamma_and_lamp(image, pixels):
    levels = pixels.astype(float)
    assert difference(image_changes.with_brightness(image, 1.25), 1.25 * levels) <= 1
    assert difference(image_changes.with_gamma(image, 0.8), 255 * (levels / 255) ** 0.8) <= 0.5
    lit = [levels[:, x] * (0.8 + 0.4 * x / 29) for x in range(30)]
    assert difference(image_changes.under_lamp(image, 0.2), np.stack(lit, axis=1)) <= 0.5


def test_blur_is_that_of_a_gaussian():
    smooth = gaussian_filter(np.random.default_rng(0).uniform(0, 255, (64, 64)), 3)
    levels = np.repeat((smooth / smooth.max() * 255).round()[..., None], 3, axis=2)
    blurred = image_changes.blurred(Image.fromarray(levels.astype(np.uint8)), 2)
    inside = (slice(8, -8), slice(8, -8))
    expected = gaussian_filter(levels, (2, 2, 0))
    assert np.abs(np.asarray(blurred, dtype=float)[inside] - expected[inside]).max() <= 3


def test_shift_moves_right_and_down(image, pixels):
    moved = np.asarray(image_changes.shifted(image, 2))
    np.testing.assert_array_equal(moved[2:, 2:], pixels[:-2, :-2])
    np.testing.assert_array_equal(moved[1, 2:], pixels[0, :-2])  # mirrored


def test_compression_and_turn_keep_the_size(image):
    for changed in (image_changes.as_jpeg(image, 60), image_changes.rotated(image, 2)):
        assert changed.size == image.size and changed.mode == "RGB"
    gradient = Image.fromarray(np.repeat(np.repeat(np.arange(0, 250, 2, dtype=np.uint8)[None, :, None], 125, 0), 3, 2))
    turned = np.asarray(image_changes.rotated(gradient, 90))
    np.testing.assert_allclose(turned[62, 20:100, 0], gradient.height, atol=4)  # it now runs from top to bottom
