from pathlib import Path

import numpy as np
import pytest
import torch
from diffad import ImageError
from diffad.imaging.preprocessing import as_image_list, load_rgb, resize_rgb
from diffad.imaging.tensors import to_model_range
from image_files_by_hand import pgm, png
from PIL import Image


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).movedim(-1, 0)


RGB_INPUTS = {
    "pil": Image.fromarray,
    "function": lambda a: lambda: Image.fromarray(a),
    "uint8 array": lambda a: a,
    "float16 array": lambda a: (a / 255).astype(np.float16),
    "float32 array": lambda a: (a / 255).astype(np.float32),
    "float64 array": lambda a: a / 255,
    "non-contiguous array": lambda a: np.asfortranarray(a),
    "uint8 tensor": chw,
    "float32 tensor": lambda a: chw(a / 255).float(),
    "float64 tensor": lambda a: chw(a / 255),
    "tensor with gradient": lambda a: chw(a / 255).requires_grad_(),
}


@pytest.mark.parametrize("kind", RGB_INPUTS)
def test_every_kind_of_rgb_input_gives_the_same_pixels(pixels, kind):
    image = load_rgb(RGB_INPUTS[kind](pixels))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("kind", [str, Path, Image.open])
def test_files_give_the_same_pixels(pixels, save_image, kind):
    np.testing.assert_array_equal(np.asarray(load_rgb(kind(save_image(pixels, "part.png")))), pixels)


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda a: a,
        lambda a: a / 255,
        lambda a: a[..., None],
        lambda a: (a / 255).astype(np.float32)[..., None],
        lambda a: torch.from_numpy(a)[None],
        lambda a: torch.from_numpy(a / 255)[None],
    ],
)
def test_every_kind_of_gray_input_gives_the_same_pixels(pixels, convert):
    gray = np.ascontiguousarray(pixels[..., 0])
    np.testing.assert_array_equal(np.asarray(load_rgb(convert(gray))), np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize("convert", [lambda a: Image.fromarray(a, "RGBA"), lambda a: a, lambda a: a / 255, chw])
def test_every_kind_of_rgba_input_is_laid_on_black(pixels, convert):
    alpha = np.full((20, 30, 1), 255, dtype=np.uint8)
    alpha[:10] = 0
    result = np.asarray(load_rgb(convert(np.concatenate([pixels, alpha], axis=2))))
    np.testing.assert_array_equal(result[:10], 0)
    np.testing.assert_array_equal(result[10:], pixels[10:])


def test_floats_are_rounded_not_cut():
    gray = np.full((8, 8), 100.6 / 255)
    gray[0], gray[1] = 100.4 / 255, 254.9 / 255
    result = np.asarray(load_rgb(gray))[:3, 0, 0]
    np.testing.assert_array_equal(result, [100, 255, 101])


def test_exif_rotation_of_a_pil_image_is_applied(pixels, save_image):
    tags = Image.Exif()
    tags[0x0112] = 6
    opened = Image.open(save_image(pixels, "part.png", exif=tags))
    np.testing.assert_array_equal(np.asarray(load_rgb(opened)), np.rot90(pixels, -1))


def test_function_is_called_once_and_only_when_loaded(pixels):
    calls = []

    def read():
        calls.append(1)
        return Image.fromarray(pixels)

    (image,) = as_image_list(read)
    assert not calls
    load_rgb(image)
    assert len(calls) == 1


UNUSABLE = {
    "two channels": np.zeros((10, 10, 2), dtype=np.uint8),
    "five channels": torch.zeros(5, 10, 10),
    "channels last tensor": torch.zeros(10, 10, 3),
    "channels first array": np.zeros((3, 10, 10)),
    "one dimension": np.zeros(10, dtype=np.uint8),
    "four dimensions": np.zeros((1, 10, 10, 3), dtype=np.uint8),
    "int64": np.zeros((10, 10), dtype=np.int64),
    "channels first uint16": np.zeros((3, 10, 10), dtype=np.uint16),
    "uint32": np.zeros((10, 10), dtype=np.uint32),
    "bool": np.zeros((10, 10), dtype=bool),
    "int tensor": torch.zeros(3, 10, 10, dtype=torch.int32),
    "NaN": np.full((10, 10), np.nan),
    "one NaN": np.where(np.eye(10) * np.arange(10) == 5, np.nan, 0.5),
    "infinity": np.where(np.eye(10) > 0, np.inf, 0.5),
    "negative": np.full((10, 10), -0.01),
    "range -1..1": torch.linspace(-1, 1, 300).view(3, 10, 10),
    "range 0..255": np.linspace(0, 255, 100).reshape(10, 10),
    "too small": np.zeros((4, 20, 3), dtype=np.uint8),
    "empty uint8": np.zeros((0, 10), dtype=np.uint8),
    "floating PIL": Image.new("F", (10, 10)),
    "empty float": np.zeros((0, 10)),
    "tensor without channel": torch.zeros(10, 12),  # comes out transposed
    "None": None,
    "number": 5,
    "bytes": b"abc",
    "function returning None": lambda: None,
}


@pytest.mark.parametrize("image", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_input_is_refused_by_name(image):
    with pytest.raises(ImageError, match="^camera 3: "):
        load_rgb(image, "camera 3")


def test_truncated_file_opened_by_pillow_is_refused_by_name(save_image):
    path = save_image(np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8), "part.png")
    path.write_bytes(path.read_bytes()[:6000])
    with Image.open(path) as image, pytest.raises(ImageError, match="camera 3"):
        load_rgb(image, "camera 3")


def test_error_states_the_offending_range_type_and_shape():
    with pytest.raises(ImageError, match=r"-0.5\.\.2.0"):
        load_rgb(np.linspace(-0.5, 2, 100).reshape(10, 10))
    with pytest.raises(ImageError, match="int16"):
        load_rgb(np.zeros((10, 10), dtype=np.int16))
    with pytest.raises(ImageError, match=r"\(7, 10, 10\)"):
        load_rgb(torch.zeros(7, 10, 10))


@pytest.mark.parametrize(
    "image",
    [
        "part.png",
        Path("part.png"),
        Image.new("RGB", (10, 12)),
        np.zeros((12, 10)),
        np.zeros((12, 10, 1)),
        np.zeros((12, 10, 3)),
        np.zeros((12, 10, 4)),
        torch.zeros(1, 12, 10),
        torch.zeros(3, 12, 10),
        lambda: None,
    ],
)
def test_one_image_is_a_list_of_one(image):
    images = as_image_list(image)
    assert len(images) == 1 and images[0] is image


@pytest.mark.parametrize("shape", [(5, 12, 10), (5, 12, 10, 1), (5, 12, 10, 3), (5, 12, 10, 4), (1, 12, 10, 3)])
def test_batch_array_is_split(shape):
    batch = np.random.default_rng(0).random(shape)
    images = as_image_list(batch)
    assert len(images) == shape[0]
    for image, expected in zip(images, batch):
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("shape", [(5, 3, 12, 10), (5, 1, 12, 10), (1, 3, 12, 10)])
def test_batch_tensor_is_split(shape):
    batch = torch.rand(shape)
    images = as_image_list(batch)
    assert len(images) == shape[0]
    assert all(torch.equal(image, expected) for image, expected in zip(images, batch))


@pytest.mark.parametrize("container", [list, tuple, iter])
def test_sequences_keep_their_mixed_images(container):
    images = ["part.png", np.zeros((12, 10)), torch.zeros(3, 12, 10)]
    result = as_image_list(container(images))
    assert len(result) == 3 and all(a is b for a, b in zip(result, images))


@pytest.mark.parametrize("images", [None, 5, 0.5])
def test_other_types_are_refused(images):
    with pytest.raises(TypeError, match=type(images).__name__):
        as_image_list(images)


def test_resize_gives_channels_first_at_height_and_width(pixels):
    resized = resize_rgb(Image.fromarray(pixels), (10, 24))
    assert resized.shape == (3, 10, 24) and resized.dtype == np.uint8


def test_resize_to_the_same_size_changes_nothing(pixels):
    np.testing.assert_array_equal(resize_rgb(Image.fromarray(pixels), (20, 30)), pixels.transpose(2, 0, 1))


def test_resize_averages_detail_instead_of_skipping_it():
    stripes = np.zeros((32, 64, 3), dtype=np.uint8)
    stripes[:, ::4] = 200  # a plain bilinear lookup of every fourth pixel would see 0
    resized = resize_rgb(Image.fromarray(stripes), (8, 16))
    np.testing.assert_allclose(resized[:, 2:-2, 2:-2], 50, atol=4)


def test_resize_is_linear_between_pixels():
    ramp = np.broadcast_to(np.arange(0, 64, 4, dtype=np.uint8)[None, :, None], (8, 16, 3))
    resized = resize_rgb(Image.fromarray(np.ascontiguousarray(ramp)), (8, 32))
    np.testing.assert_allclose(resized[0, 0, 1:-1], np.arange(1, 61, 2), atol=0.5)


@pytest.mark.parametrize("size", [(8, 40), (8, 11)])
def test_resize_does_not_overshoot_at_edges(size):
    edge = np.full((8, 20, 3), 50, dtype=np.uint8)
    edge[:, 10:] = 200
    resized = resize_rgb(Image.fromarray(edge), size)
    assert resized.min() == 50 and resized.max() == 200


def test_model_range_maps_grey_levels_onto_minus_one_to_one():
    levels = torch.arange(256, dtype=torch.uint8)
    result = to_model_range(levels)
    assert result.dtype == torch.float32
    assert result[0] == -1 and result[255] == 1
    torch.testing.assert_close(result, torch.linspace(-1, 1, 256), rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_uint16_arrays_are_read_as_16_bit_files_are(tmp_path, save_image, suffix, dtype):
    levels = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    path = tmp_path / f"part.{suffix}"
    path.write_bytes(pgm(levels)) if suffix == "pgm" else save_image(levels, path.name)
    stored = np.asarray(load_rgb(path))
    for array in (levels, levels[..., None]):
        np.testing.assert_array_equal(np.asarray(load_rgb(array.astype(dtype))), stored)
    np.testing.assert_array_equal(np.asarray(load_rgb(torch.from_numpy(levels)[None])), stored)


@pytest.mark.parametrize("channels", [3, 4])
def test_uint16_colours_are_read_as_16_bit_files_are(tmp_path, channels):
    levels = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    levels[..., 3:] = 65535
    kind = {3: 2, 4: 6}[channels]
    (tmp_path / "part.png").write_bytes(png(30, 20, 16, kind, b"".join(b"\0" + row.tobytes() for row in levels.astype(">u2"))))
    stored = np.asarray(load_rgb(tmp_path / "part.png"))
    np.testing.assert_array_equal(np.asarray(load_rgb(levels)), stored)
    assert np.abs(stored - levels[..., :3] / 257).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [3, 4])
def test_numpy_images_with_channels_first_are_refused_alone_and_in_a_batch(channels, dtype):
    image = np.zeros((channels, 64, 48), dtype=dtype)
    with pytest.raises(
        ImageError, match=rf"\({channels}, 64, 48\); channels come last in numpy arrays: .*transpose\(1, 2, 0\)"
    ):
        as_image_list(image)
    for one in as_image_list(np.stack([image] * 5)):
        with pytest.raises(ImageError, match="channels come last in numpy arrays"):
            load_rgb(one)


def test_an_array_without_dimensions_is_refused_when_it_is_loaded():
    (image,) = as_image_list(np.array(0.5))
    with pytest.raises(ImageError):
        load_rgb(image)
