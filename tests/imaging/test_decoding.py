"""No file ends a run: what is damaged, too large or of another kind is an ImageError with its name; pages are counted."""

import io
import os
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from diffad import ImageError
from diffad.imaging.decoding import MAX_PIXELS, ImageWarning, decode, pixel_count
from diffad.imaging.masks import read_mask, read_region
from diffad.imaging.preprocessing import load_rgb
from diffad.imaging.reading import page_count, read_image, to_rgb
from image_files_by_hand import png, tiff_with_tile
from PIL import Image

CASES = Path(__file__).parents[1] / "cases"
DAMAGED = sorted((CASES / "damaged_images").iterdir())


@pytest.mark.parametrize("read", [read_image, read_mask, read_region])
@pytest.mark.parametrize("path", DAMAGED, ids=[path.name for path in DAMAGED])
def test_stored_damaged_files_are_refused_by_name(path, read, monkeypatch):
    def start(*args, **kwargs):
        pytest.fail(f"another program was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(subprocess, "check_call", start)
    with pytest.raises(ImageError) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# Every documented format, and what Pillow knows beside them


@pytest.mark.parametrize("kind", ["gif", "ico", "tga", "jpeg2000", "pcx", "sgi", "eps", "pdf"])
def test_other_formats_are_refused_whatever_their_names(tmp_path, pixels, kind):
    try:
        Image.fromarray(pixels).save(tmp_path / "part.png", kind)
    except OSError:
        pytest.skip(f"Pillow can't write {kind} here")
    with pytest.raises(ImageError, match="part.png: not a readable image .PNG, JPEG, BMP, TIFF, WebP, PGM and PPM are read"):
        read_image(tmp_path / "part.png")
    with pytest.raises(ImageError, match="mask"):
        read_mask(io.BytesIO((tmp_path / "part.png").read_bytes()), "mask")


@pytest.mark.parametrize("error", [struct.error, IndexError, TypeError, MemoryError, RecursionError, OverflowError, KeyError])
@pytest.mark.parametrize("method", ["open", "load"])
def test_whatever_pillow_raises_becomes_an_error_with_the_name(pixels, save_image, monkeypatch, error, method):
    path = save_image(pixels, "part.png")

    def fail(*args, **kwargs):
        raise error()

    monkeypatch.setattr(*((Image, "open") if method == "open" else (Image.Image, "load")), fail)
    for read in (read_image, read_mask):
        with pytest.raises(ImageError, match=f"part.png: damaged image .{error.__name__}"):
            read(path)


def test_what_stops_the_program_is_no_damage(pixels, save_image, monkeypatch):
    path = save_image(pixels, "part.png")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "part.png")
    with pytest.raises(ImageError, match="part.png: is no regular file"):
        read_image(tmp_path / "part.png")


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "null\0.png"])
def test_impossible_names_are_refused(tmp_path, name):
    with pytest.raises(ImageError):
        read_image(tmp_path / name)


def test_a_file_without_permission_is_not_called_damaged(pixels, save_image, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = save_image(pixels, "part.png")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ImageError, match="part.png: can't be read .Permission denied"):
        read_image(path)


@pytest.mark.parametrize("mode", ["LAB", "HSV"])
def test_colours_that_no_camera_writes_are_refused(mode):
    with pytest.raises(ImageError, match=f"camera 3: colours as {mode}"):
        to_rgb(Image.new(mode, (10, 10)), "camera 3")


# Sizes


def test_the_header_tells_what_is_too_large(tmp_path):
    side = int(MAX_PIXELS**0.5)
    for width, height in ((side + 1, side), (50_000, 50_000)):
        (tmp_path / "part.png").write_bytes(png(width, height))
        with pytest.raises(ImageError, match="part.png: .*more than 67,108,864 pixels; cut it into tiles first"):
            decode(tmp_path / "part.png", str(tmp_path / "part.png"))
        assert pixel_count(tmp_path / "part.png") == 0


def test_pixels_are_counted_without_decoding(tmp_path, pixels, save_image):
    assert pixel_count(save_image(pixels, "whole.png")) == 600
    (tmp_path / "part.png").write_bytes(png(500, 400))
    assert pixel_count(tmp_path / "part.png") == 200_000
    assert pixel_count(tmp_path / "nowhere.png") == 0


def test_an_image_from_memory_is_bounded_alike():
    with pytest.raises(ImageError, match="camera 3: 9000x9000 are more than"):
        to_rgb(Image.new("1", (9000, 9000)), "camera 3")


def test_a_small_tiff_in_a_huge_tile_is_refused(tmp_path):
    (tmp_path / "part.tif").write_bytes(tiff_with_tile(40_000))
    with pytest.raises(ImageError, match="part.tif, tile: 40000x40000 are more than"):
        read_image(tmp_path / "part.tif")


# The process's own peak in MiB; what the resource module tells includes the process that started it.
PEAK = """
print(int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024)
"""
READ = """
import sys
from diffad.imaging.masks import read_mask
from diffad.imaging.reading import ImageError, read_image
try:
    print(read_image(sys.argv[1]).size if sys.argv[2] == "image" else read_mask(sys.argv[1]).shape)
except ImageError as error:
    print(error)
"""


def saved(mode: str, side: int, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), 200).save(buffer, kind, **options)
    return buffer.getvalue()


LARGE = {
    "1 bit": lambda: png(8192, 8192, 1, 0, bytes(8192 * 1025)),
    "16 bits": lambda: png(8192, 8192, 16, 0, bytes(8192 * 16385)),
    "RGBA": lambda: saved("RGBA", 8192, "tiff", compression="tiff_adobe_deflate"),
    "palette": lambda: saved("P", 8192, "png", transparency=3),
    "JPEG": lambda: saved("RGB", 8192, "jpeg", progressive=True),
    "WebP": lambda: saved("RGBA", 5792, "webp", lossless=True, method=0),
}


def size_and_peak(path: Path, kind: str) -> tuple[str, int]:
    """What reading the file in a process of its own prints, and its peak of memory in MiB."""
    command = [sys.executable, "-c", READ + PEAK, str(path), kind]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    result, mebibytes = run.stdout.splitlines()
    return result, int(mebibytes)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("read", ["image", "mask"])
@pytest.mark.parametrize("kind", ["1 bit", *(pytest.param(kind, marks=pytest.mark.long) for kind in list(LARGE)[1:])])
def test_the_largest_images_are_read_below_a_gigabyte(tmp_path, kind, read):
    (tmp_path / "part.png").write_bytes(LARGE[kind]())
    result, peak = size_and_peak(tmp_path / "part.png", read)
    assert result == ("(5792, 5792)" if kind == "WebP" else "(8192, 8192)") and peak < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_stored_case_of_an_image_that_is_too_large_takes_no_memory():
    result, peak = size_and_peak(CASES / "damaged_images" / "bomb_9400x9400_10kB.png", "image")
    assert "9400x9400 are more than 67,108,864 pixels; cut it into tiles first" in result and peak < 300


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_large_images_are_read_ahead_one_by_one(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(png(8000, 8000, 1, 0, bytes(8000 * 1001)))
    code = """
import sys
from pathlib import Path
from diffad.imaging.decoding import pixel_count
from diffad.imaging.reading import read_image
from diffad.imaging.streams import read_batches
folder = Path(sys.argv[1])
names = sorted(path.name for path in folder.iterdir())
print([len(batch) for batch in read_batches(names, lambda n: read_image(folder / n), 8, lambda n: pixel_count(folder / n))])
"""
    run = subprocess.run([sys.executable, "-c", code + PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    lengths, peak = run.stdout.splitlines()
    assert lengths == str([1] * 8) and int(peak) < 1000


@pytest.mark.parametrize("count", [80, 120])
def test_a_jpeg_of_more_scans_than_anyone_writes_is_refused(tmp_path, count):
    content = saved("L", 64, "jpeg", progressive=True)
    scan = content.rindex(b"\xff\xda")
    (tmp_path / "part.jpg").write_bytes(content[:scan] + (content[scan : scan + 12]) * count + content[scan:])
    if count == 80:
        assert read_image(tmp_path / "part.jpg").size == (64, 64)
    else:
        with pytest.raises(ImageError, match="part.jpg: JPEG of 1[0-9]+ scans"):
            read_image(tmp_path / "part.jpg")


# Pages


@pytest.mark.parametrize("name", ["stack.tif", "apng.png"])
def test_stored_files_of_several_pages_are_read_with_a_warning_and_their_number(name):
    with pytest.warns(ImageWarning, match=f"{name}: holds 3 pages, of which the first is used"):
        image = read_image(CASES / "multipage" / name)
    assert image.size == (32, 32) and page_count(image) == 3


@pytest.mark.parametrize("suffix", ["tif", "webp", "png"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_pages_are_counted_and_the_first_is_read(tmp_path, pixels, suffix, count):
    frames = [Image.fromarray(np.roll(pixels, 7 * i, axis=1)) for i in range(count)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"part.{suffix}", save_all=True, append_images=frames[1:], **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_image(tmp_path / f"part.{suffix}")
    assert page_count(image) == count and len(caught) == (count > 1)
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_pages_of_which_one_is_of_a_strange_kind_are_counted(tmp_path, pixels):
    frames = [Image.fromarray(pixels), Image.fromarray(pixels), Image.fromarray(pixels)]
    frames[0].save(tmp_path / "part.tif", save_all=True, append_images=frames[1:])
    content = bytearray((tmp_path / "part.tif").read_bytes())
    second = content.index(struct.pack("<HHL", 258, 3, 3), content.index(struct.pack("<HHL", 258, 3, 3)) + 1)
    content[second : second + 2] = struct.pack("<H", 4444)  # without its bits per sample
    (tmp_path / "part.tif").write_bytes(content)
    with pytest.warns(ImageWarning, match="part.tif: holds [23] pages"):
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "part.tif")), pixels)


def test_pages_that_lead_round_in_a_circle_are_counted_once(tmp_path, pixels):
    frames = [Image.fromarray(pixels), Image.fromarray(pixels)]
    frames[0].save(tmp_path / "part.tif", save_all=True, append_images=frames[1:])
    content = bytearray((tmp_path / "part.tif").read_bytes())
    first = struct.unpack_from("<L", content, 4)[0]
    (count,) = struct.unpack_from("<H", content, first)
    (second,) = struct.unpack_from("<L", content, first + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", content, second)
    struct.pack_into("<L", content, second + 2 + 12 * count, first)
    (tmp_path / "part.tif").write_bytes(content)
    with pytest.warns(ImageWarning, match="holds 2 pages"):
        assert page_count(read_image(tmp_path / "part.tif")) == 2


def test_an_image_without_a_file_has_one_page(pixels):
    assert page_count(Image.fromarray(pixels)) == 1


# Bits that are not used


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("highest", "is_warned"), [(1023, True), (4095, True), (16383, False), (65535, False)])
def test_16_bits_of_which_a_tenth_is_used_are_warned_of(tmp_path, channels, highest, is_warned):
    levels = np.linspace(0, highest, 20 * 30 * channels).round().astype(np.uint16).reshape(20, 30, channels)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    (tmp_path / "part.png").write_bytes(png(30, 20, 16, 2 if channels == 3 else 0, rows))
    array = levels[..., 0] if channels == 1 else levels
    for source, name in ((tmp_path / "part.png", "part.png"), (array, "image")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            image = load_rgb(source)
        messages = [str(warning.message) for warning in caught]
        assert [f"{name}: 16-bit image with no level above" in message for message in messages] == [True] * is_warned
        assert np.asarray(image).max() == pytest.approx(highest / 257, abs=1)


def test_8_bits_are_never_warned_of(save_image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(save_image(np.full((20, 20, 3), 3, dtype=np.uint8), "part.png"))


def test_a_folder_of_cases_goes_on_after_every_damaged_one(tmp_path, pixels):
    """As jobs read them, by threads: the errors come in their places."""
    from diffad.imaging.streams import read_batches

    for path in DAMAGED:
        shutil.copy(path, tmp_path)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "z.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    batches = read_batches(names, lambda name: read_image(tmp_path / name), 3, lambda name: pixel_count(tmp_path / name))
    results = [pair for batch in batches for pair in batch]
    assert [name for name, _ in results] == names
    readable = {name for name, image in results if not isinstance(image, ImageError)}
    assert readable == {"a.png", "z.png"} and all(name in str(error) for name, error in results if name not in readable)
