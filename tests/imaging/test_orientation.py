"""The orientation tag is read whatever else of the EXIF data is damaged; where it can't be known, the image is refused."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from diffad import ImageError
from diffad.imaging.orientation import exif_orientation
from diffad.imaging.reading import read_image
from PIL import Image

CASES = Path(__file__).parents[1] / "cases" / "exif"
ORIENTATION, MAKE, RESOLUTION = 0x0112, 0x010F, 0x011A


def block(entries: list[tuple[int, int, int, int]], order: str = "<", count: int | None = None) -> bytes:
    """EXIF data of (tag, type, count, value or offset)."""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    directory = struct.pack(order + "H", len(entries) if count is None else count)
    for tag, kind, number, value in entries:
        size = {1: "BBBB", 3: "HH", 4: "L"}.get(kind, "L")
        values = (value, *[0] * (len(size) - 1))
        directory += struct.pack(order + "HHL", tag, kind, number) + struct.pack(order + size, *values)
    return b"Exif\0\0" + header + directory + bytes(4)


def with_exif(pixels: np.ndarray, exif: bytes, suffix: str, path: Path) -> Path:
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), exif=exif, **options)
    path = path / f"part.{suffix}"
    path.write_bytes(buffer.getvalue())
    return path


def test_stored_cases():
    stored = np.asarray(Image.open(CASES / "byte_int.jpg").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(CASES / "byte_int.jpg")), np.rot90(stored, -1))
    assert read_image(CASES / "ok.png").size == (32, 32)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_the_tag_is_found_in_any_byte_order_and_type(order, kind):
    assert exif_orientation(block([(MAKE, 2, 4, 0), (ORIENTATION, kind, 1, 8), (RESOLUTION, 5, 1, 0)], order)) == 8


DAMAGED = {
    "value beyond the end": [(MAKE, 2, 900, 60_000), (ORIENTATION, 3, 1, 6)],
    "unknown type": [(MAKE, 99, 7, 1), (ORIENTATION, 3, 1, 6)],
    "byte for a fraction": [(ORIENTATION, 3, 1, 6), (RESOLUTION, 1, 1, 5)],
    "EXIF directory nowhere": [(ORIENTATION, 3, 1, 6), (0x8769, 4, 1, 2**32 - 1)],
    "GPS directory of text": [(ORIENTATION, 3, 1, 6), (0x8825, 2, 3, 1)],
}


@pytest.mark.parametrize("entries", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_other_damaged_tags_do_no_harm(tmp_path, pixels, entries, suffix):
    path = with_exif(pixels, block(entries), suffix, tmp_path)
    whole = with_exif(pixels, block([(ORIENTATION, 3, 1, 6)]), suffix, tmp_path / "..")
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(read_image(whole)))
    assert read_image(path).size == pixels.shape[:2]


def test_data_cut_off_after_the_tag_do_no_harm(tmp_path, pixels):
    assert read_image(with_exif(pixels, block([(ORIENTATION, 3, 1, 6)], count=9), "jpg", tmp_path)).size == pixels.shape[:2]


def test_damaged_tags_of_a_tiff_do_no_harm(tmp_path, pixels):
    path = tmp_path / "part.tif"
    for compression in (None, "tiff_lzw"):
        Image.fromarray(pixels).save(path, tiffinfo={ORIENTATION: 6, 0x8769: 2**31}, compression=compression)
        np.testing.assert_array_equal(np.asarray(read_image(path)), np.rot90(pixels, -1))


UNKNOWN = {
    "no header": b"Exif\0\0MM\x92+" + block([(ORIENTATION, 3, 1, 6)])[10:],
    "cut off before the tag": block([(MAKE, 2, 4, 0)], count=9),
    "directory nowhere": block([])[:10] + struct.pack("<L", 2**31),
    "header alone": b"Exif\0\0II*\0",
}


@pytest.mark.parametrize("exif", UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_orientation_is_refused(tmp_path, pixels, exif):
    with pytest.raises(ImageError, match="part.jpg: damaged image .EXIF data .*orientation is unknown"):
        read_image(with_exif(pixels, exif, "jpg", tmp_path))


@pytest.mark.parametrize("value", [0, 1, 9, 255])
def test_a_value_without_a_meaning_turns_nothing(tmp_path, pixels, value):
    assert read_image(with_exif(pixels, block([(ORIENTATION, 3, 1, value)]), "png", tmp_path)).size == pixels.shape[1::-1]


def test_no_exif_data_are_no_damage(tmp_path, pixels):
    assert exif_orientation(b"") is None and exif_orientation(b"Exif\0\0") is None
    assert read_image(with_exif(pixels, block([(MAKE, 2, 4, 0)]), "png", tmp_path)).size == pixels.shape[1::-1]


def test_xmp_tells_where_exif_does_not(tmp_path, pixels):
    path = tmp_path / "part.webp"
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(pixels).save(path, lossless=True, xmp=xmp)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.rot90(pixels, -1))
