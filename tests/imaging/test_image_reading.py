import re

import numpy as np
import pytest
from diffad import ImageError
from diffad.imaging.reading import read_image, to_rgb
from image_files_by_hand import pgm, png
from PIL import Image

ORIENTATION = 0x0112  # EXIF tag


def read_pixels(path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def gray_to_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def assert_refused(path, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "tiff", "ppm", "webp"])
def test_lossless_files_keep_every_pixel(pixels, save_image, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(read_pixels(save_image(pixels, f"part.{suffix}", **options)), pixels)


def test_jpeg_is_read_as_rgb_not_bgr(save_image):
    blue = np.zeros((16, 16, 3), dtype=np.uint8)
    blue[..., 2] = 200
    np.testing.assert_allclose(read_pixels(save_image(blue, "part.jpg", quality=95)), blue, atol=3)


def test_path_may_be_text(pixels, save_image):
    np.testing.assert_array_equal(read_pixels(str(save_image(pixels, "part.png"))), pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "pgm"])
def test_grayscale_gives_three_equal_channels(save_image, suffix):
    gray = np.full((12, 10), 90, dtype=np.uint8)
    gray[6:] = 200
    options = {"quality": 95} if suffix == "jpg" else {}
    result = read_pixels(save_image(gray, f"part.{suffix}", **options))
    np.testing.assert_allclose(result, gray_to_rgb(gray), atol=3 if suffix == "jpg" else 0)


def test_bilevel_image_is_black_and_white(save_image):
    bits = np.random.default_rng(0).random((9, 11)) > 0.5
    np.testing.assert_array_equal(read_pixels(save_image(bits, "part.png")), gray_to_rgb(bits * np.uint8(255)))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_gray_is_scaled_from_its_full_range(tmp_path, save_image, suffix):
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = tmp_path / f"part.{suffix}"
    path.write_bytes(pgm(gray * 257)) if suffix == "pgm" else save_image(gray * 257, path.name)
    assert Image.open(path).mode.startswith("I")
    np.testing.assert_array_equal(read_pixels(path), gray_to_rgb(gray.astype(np.uint8)))


def test_16_bit_gray_is_rounded_to_the_nearest_level(save_image):
    levels = np.full((8, 8), 257 * 100, dtype=np.uint16)
    levels[0], levels[1], levels[2], levels[3] = 257 * 100 + 128, 257 * 100 + 129, 257 * 100 - 128, 65535
    expected = np.full((8, 8), 100, dtype=np.uint8)
    expected[1], expected[3] = 101, 255
    np.testing.assert_array_equal(read_pixels(save_image(levels, "part.png")), gray_to_rgb(expected))


def test_big_endian_16_bit_gray_reads_the_same(save_image):
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = save_image(Image.frombytes("I;16B", (16, 16), (gray * 257).astype(">u2").tobytes()), "part.tif")
    np.testing.assert_array_equal(read_pixels(path), gray_to_rgb(gray.astype(np.uint8)))


def test_32_bit_image_with_16_bit_values_reads_like_16_bits(save_image):
    gray = np.arange(256, dtype=np.int32).reshape(16, 16)
    path = save_image(gray * 257, "part.tif")
    assert Image.open(path).mode == "I"
    np.testing.assert_array_equal(read_pixels(path), gray_to_rgb(gray.astype(np.uint8)))


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_32_bit_values_of_unknown_range_are_refused(save_image, value):
    levels = np.zeros((10, 10), dtype=np.int32)
    levels[3, 3] = value
    assert_refused(save_image(levels, "part.tif"), "32-bit", "0..65535")


def test_floating_point_tiff_is_refused(save_image):
    assert_refused(save_image(np.full((10, 10), 0.5, dtype=np.float32), "part.tif"), "floating-point")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_on_black(pixels, save_image, mode):
    alpha = np.zeros((20, 30), dtype=np.uint8)
    alpha[:, 10:20], alpha[:, 20:] = 128, 255
    opaque = pixels if mode == "RGBA" else gray_to_rgb(pixels[..., 0])
    color = pixels if mode == "RGBA" else pixels[..., :1]
    path = save_image(np.concatenate([color, alpha[..., None]], axis=2), "part.png")
    assert Image.open(path).mode == mode
    result = read_pixels(path)
    np.testing.assert_array_equal(result[:, :10], 0)
    np.testing.assert_allclose(result[:, 10:20], opaque[:, 10:20] * (128 / 255), atol=1)
    np.testing.assert_array_equal(result[:, 20:], opaque[:, 20:])


def palette_image() -> Image.Image:
    """Left half red (index 0), right half green (index 1)."""
    image = Image.new("P", (20, 10), 0)
    image.putpalette([200, 10, 20, 30, 220, 40])
    image.paste(1, (10, 0, 20, 10))
    return image


def test_palette_is_resolved(save_image):
    result = read_pixels(save_image(palette_image(), "part.png"))
    assert (result[:, :10] == (200, 10, 20)).all() and (result[:, 10:] == (30, 220, 40)).all()


def test_transparent_palette_entry_is_black(save_image):
    path = save_image(palette_image(), "part.png", transparency=1)
    assert Image.open(path).mode == "P"
    result = read_pixels(path)
    assert (result[:, :10] == (200, 10, 20)).all() and (result[:, 10:] == 0).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_transparent_key_color_is_black(save_image, mode):
    image = palette_image().convert(mode)
    key = image.getpixel((15, 5))
    result = read_pixels(save_image(image, "part.png", transparency=key))
    assert (result[:, :10] > 0).all() and (result[:, 10:] == 0).all()


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
@pytest.mark.parametrize(
    ("ink", "rgb"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 100), (155, 155, 155)),
    ],
)
def test_cmyk_ink_becomes_light(save_image, ink, rgb, suffix):
    result = read_pixels(save_image(Image.new("CMYK", (16, 16), ink), f"part.{suffix}"))
    np.testing.assert_allclose(result, np.broadcast_to(rgb, (16, 16, 3)), atol=3)


AS_SEEN = {  # what the EXIF orientation says about the stored array
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", AS_SEEN)
def test_exif_rotation_of_a_jpeg_is_applied(save_image, orientation):
    stored = np.zeros((32, 48, 3), dtype=np.uint8)
    stored[:16, :24], stored[:16, 24:], stored[16:, :24], stored[16:, 24:] = 30, 90, 150, 210
    result = read_pixels(save_image(stored, "part.jpg", exif=exif(orientation), quality=95))
    np.testing.assert_allclose(result, AS_SEEN[orientation](stored), atol=3)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_orientation_of_other_formats_is_applied_exactly_once(pixels, save_image, suffix):
    options = {"tiffinfo": {ORIENTATION: 6}} if suffix == "tif" else {"exif": exif(6), "lossless": True}
    result = read_pixels(save_image(pixels, f"part.{suffix}", **options))
    np.testing.assert_array_equal(result, np.rot90(pixels, -1))


def test_orientation_of_16_bit_gray_is_applied(save_image):
    gray = np.arange(200, dtype=np.uint16).reshape(10, 20)
    result = read_pixels(save_image(gray * 257, "part.png", exif=exif(6)))
    np.testing.assert_array_equal(result, gray_to_rgb(np.rot90(gray, -1)))


def test_missing_file_is_refused(tmp_path):
    assert_refused(tmp_path / "nowhere.png", "no such file")


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_file_is_refused(tmp_path, content):
    path = tmp_path / "part.png"
    path.write_bytes(content)
    assert_refused(path)


def test_folder_is_refused(tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert_refused(tmp_path / "folder.png")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_truncated_file_is_refused(save_image, suffix, fraction):
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    path = save_image(noise, f"part.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert_refused(path, "damaged")


def test_flipped_byte_in_a_png_is_refused(pixels, save_image):
    path = save_image(pixels, "part.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert_refused(path, "damaged")


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (40, 7)])
def test_too_small_image_is_refused(save_image, size):
    assert_refused(save_image(Image.new("RGB", size), "part.png"), f"{size[0]}x{size[1]}", "too small")


def test_smallest_allowed_image_is_read(save_image):
    assert read_image(save_image(Image.new("RGB", (8, 8)), "part.png")).size == (8, 8)


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "part.png"
    path.write_bytes(png(50_000, 50_000))
    assert_refused(path, "pixels", "tiles")


@pytest.mark.parametrize("size", [(40, 30), (80, 30)])  # Pillow only warns up to twice its limit
def test_image_above_the_limit_of_pillow_is_refused(save_image, monkeypatch, size):
    path = save_image(Image.new("RGB", size), "part.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert_refused(path, "pixels", "tiles")


def test_refusal_of_a_large_image_states_the_true_limit(tmp_path):
    path = tmp_path / "part.png"
    path.write_bytes(png(10_000, 10_000))
    with pytest.raises(ImageError) as caught:
        read_image(path)
    stated = re.search(r"more than ([\d,]+) pixels", str(caught.value))
    assert stated is None or int(stated[1].replace(",", "")) < 10_000**2


def test_to_rgb_names_the_image_it_refuses():
    with pytest.raises(ImageError, match="^camera 3: "):
        to_rgb(Image.new("F", (10, 10)), "camera 3")


def test_to_rgb_leaves_its_argument_alone(pixels):
    image = Image.fromarray(np.dstack([pixels, pixels[..., :1]]))
    before = image.copy()
    to_rgb(image, "part")
    assert image == before
