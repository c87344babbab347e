"""Masks in image files: which pixels are marked, whatever the levels, the mode and the format; pictures are no masks."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from diffad import ImageError
from diffad.imaging.decoding import ImageWarning
from diffad.imaging.masks import read_mask, read_region
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

CASES = Path(__file__).parents[1] / "cases" / "mask_levels"


def rectangle(size: tuple[int, int] = (40, 50)) -> np.ndarray:
    """A mask with a rectangle and a line one pixel wide."""
    mask = np.zeros(size, dtype=bool)
    mask[8:20, 10:30] = mask[30, 5:45] = True
    return mask


@pytest.fixture
def read(save_image):
    """Function that reads levels or an image as a mask, and lets warnings fail."""

    def read(levels, name="mask.png", **options) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ImageWarning)
            return read_mask(save_image(levels, name, **options))

    return read


@pytest.mark.parametrize("name", ["levels_85_255", "rgba_black_on_transparent"])
def test_stored_cases(name):
    mask = read_mask(CASES / f"{name}.png")
    assert mask.sum() == 208 and set(np.unique(mask)) == {0, 1}


def test_inverted_mask_is_read_as_it_is_with_a_warning():
    with pytest.warns(
        ImageWarning, match="inverted_black_on_white.png: marks 80% of the image as defective and looks inverted"
    ):
        assert read_mask(CASES / "inverted_black_on_white.png").sum() == 816


@pytest.mark.parametrize("value", [1, 2, 8, 9, 85, 127, 128, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_one_level_counts_whatever_it_is(read, value, dtype):
    result = read(rectangle().astype(dtype) * dtype(value), "mask.tif")
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, rectangle())


@pytest.mark.parametrize("value", [256, 4095, 65535])
def test_levels_of_16_bits_count(read, value):
    np.testing.assert_array_equal(read(rectangle().astype(np.uint16) * np.uint16(value)), rectangle())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_mask_of_any_mode_reads_the_same(read, mode):
    image = (
        Image.fromarray(rectangle()).convert("RGB").convert(mode)
        if mode == "CMYK"
        else Image.fromarray(rectangle()).convert(mode)
    )
    np.testing.assert_array_equal(read(image, "mask.tif" if mode == "CMYK" else "mask.png"), rectangle())


@pytest.mark.parametrize("suffix", ["bmp", "tif", "webp", "pgm"])
def test_mask_of_any_format_reads_the_same(read, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(read(rectangle().astype(np.uint8) * 255, f"mask.{suffix}", **options), rectangle())


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (0, 0, 12), (128, 64, 0)])
def test_colours_of_a_palette_and_of_pixels_count(read, colour):
    image = Image.fromarray(rectangle().astype(np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0, *colour])
    np.testing.assert_array_equal(read(image), rectangle())
    np.testing.assert_array_equal(read(image.convert("RGB")), rectangle())


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_an_alpha_channel_marks_whatever_the_colour_under_it(read, colour):
    alpha = rectangle().astype(np.uint8) * 255
    for bands in (1, 3):
        levels = np.concatenate([np.full((*alpha.shape, bands), colour, np.uint8), alpha[..., None]], axis=2)
        np.testing.assert_array_equal(read(Image.fromarray(levels)), rectangle())


def test_an_alpha_channel_that_tells_nothing_leaves_it_to_the_colour(read):
    for opacity in (0, 255):
        levels = np.dstack([rectangle() * np.uint8(255)] * 3 + [np.full(rectangle().shape, opacity, np.uint8)])
        np.testing.assert_array_equal(read(Image.fromarray(levels)), rectangle())


@pytest.mark.parametrize(
    "labels", [[1, 2, 3], [1, 2, 127], list(range(1, 17)), [85, 255], [9, 100, 254], list(range(15, 256, 16))]
)
def test_few_levels_all_count(read, labels):
    levels = np.zeros((20, 20), dtype=np.uint8)
    levels[5:12, 5:12] = np.resize(labels, (7, 7))
    np.testing.assert_array_equal(read(levels), levels > 0)


def test_noise_beside_bright_levels_does_not_count(read):
    levels = np.random.default_rng(0).integers(0, 9, rectangle().shape, dtype=np.uint8)
    levels[rectangle()] = 255
    np.testing.assert_array_equal(read(levels), rectangle())


def test_blank_mask_has_no_pixels(read):
    assert not read(np.zeros((16, 19), dtype=np.uint8)).any()


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("highest", [255, 200])
def test_soft_edges_end_at_half_the_highest_level(read, sigma, highest):
    levels = (gaussian_filter(rectangle().astype(float), sigma) * highest).round().astype(np.uint8)
    assert len(np.unique(levels)) > 16
    np.testing.assert_array_equal(read(levels), levels >= levels.max() / 2)


def test_a_mask_enlarged_with_interpolation_has_soft_edges(read):
    levels = (zoom(rectangle().astype(float), 5, order=1) * 255).round().astype(np.uint8)
    assert len(np.unique(levels)) > 16
    assert read(levels).mean() == pytest.approx(rectangle().mean(), rel=0.1)


def test_a_mask_saved_as_jpeg_is_read_at_half(read):
    mask = np.kron(rectangle(), np.ones((4, 4))).astype(bool)
    assert (read(mask.astype(np.uint8) * 255, "mask.jpg", quality=60) == mask).mean() > 0.999


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_soft_edges_of_16_bits(read, suffix):
    levels = (gaussian_filter(rectangle().astype(float), 1) * 65535).round().astype(np.uint16)
    np.testing.assert_array_equal(read(levels, f"mask.{suffix}"), levels >= levels.max() / 2)


PICTURES = {
    "photograph": gaussian_filter(np.random.default_rng(0).normal(120, 150, (60, 60)), 2).clip(0, 255),
    "noise": np.random.default_rng(0).integers(0, 256, (60, 60)),
    "slope": np.broadcast_to(np.arange(240), (60, 240)),
    "heat map": np.exp(-((np.indices((64, 64)) - 32) ** 2).sum(0) / 200) * 255,
    "dark picture": np.broadcast_to(np.arange(100), (60, 100)),
}


@pytest.mark.parametrize("levels", PICTURES.values(), ids=PICTURES)
def test_pictures_are_refused_as_masks(read, levels):
    with pytest.raises(ImageError, match="mask.png: no mask but a picture of [0-9]+ grey levels; save it as black"):
        read(levels.astype(np.uint8))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_floating_point_masks_of_no_meaning_are_refused(read, value):
    levels = rectangle().astype(np.float32)
    levels[0, 0] = value
    with pytest.raises(ImageError, match="mask.tif: mask with values outside"):
        read(levels, "mask.tif")


def test_mask_is_rotated_like_its_image(read):
    tags = Image.Exif()
    tags[0x0112] = 6
    np.testing.assert_array_equal(read(rectangle().astype(np.uint8) * 255, exif=tags), np.rot90(rectangle(), -1))


def test_damaged_mask_is_refused(pixels, save_image):
    path = save_image(pixels, "mask.png")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageError, match="mask.png"):
        read_mask(path)


def test_a_region_of_interest_is_the_brighter_half(save_image):
    levels = np.array([[0, 100, 127], [128, 200, 255]], dtype=np.uint8).repeat(8, axis=0)
    for source in (save_image(levels, "roi.png"), Image.fromarray(levels)):
        np.testing.assert_array_equal(read_region(source), levels >= 128)
    np.testing.assert_array_equal(read_region(save_image((levels > 0).astype(np.uint8), "roi.png")), levels > 0)
