"""Opening image files: documented formats only, sizes checked before decoding, every failure an error that names the file."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from .orientation import upright

# Pillow tells formats by content: of all that it knows, some start other programs (EPS), others are rarely looked after.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")  # Pillow's names; PPM is PGM as well
READ_FORMATS = "PNG, JPEG, BMP, TIFF, WebP, PGM and PPM are read"
MAX_PIXELS = 2**26  # 8192 x 8192, of any image that is decoded; a file of ten kilobytes may promise more
MAX_WEBP_PIXELS = 2**25  # decoding it takes sixteen bytes for each, twice as many as any other format
MOST_PAGES = 10_000  # counting stops there: looking for the next page takes longer with every one
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
# Each scan of a JPEG takes a pass over all pixels and ten bytes of the file; progressive ones have about ten.
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 100


class ImageError(ValueError):
    """An image or mask that can't be used; the message names it and the remedy."""


class ImageWarning(UserWarning):
    """An image or mask that is used, but perhaps not as its maker meant it."""


class Decoded(NamedTuple):
    """An image file's first page.

    Args:
        image: the right way up, in the mode that it is stored in.
        pages: number of pages that the file holds.
        has_16_bit_colours: its colours are stored with 16 bits, of which Pillow keeps 8.
    """

    image: Image.Image
    pages: int
    has_16_bit_colours: bool


def decode(source: str | Path | BinaryIO, name: str) -> Decoded:
    """Decodes the first page of an image file.

    Args:
        source: path, or a seekable file that is open for reading.
        name: how errors call it.

    Raises:
        ImageError: if it is missing, of another format, too large or damaged, whatever goes wrong while decoding.
    """
    with opened(source, name) as image:
        several, has_16_bit_colours = getattr(image, "is_animated", False), stores_16_bit_colours(image)
        if image.format == "TIFF":
            _check_tiles(image, name)
            # Pillow's own reads all EXIF data after the pixels, and gives up at the first damaged tag.
            image.load_end = lambda: None
        elif image.format in ("JPEG", "MPO"):
            _check_scans(image.fp, name)
        image = upright(image)
    return Decoded(image, _count_pages(source, name) if several else 1, has_16_bit_colours)


def stores_16_bit_colours(image: Image.Image) -> bool:
    """Whether Pillow will shorten an image's colours from 16 bits to 8; to be asked before it is decoded."""
    return not image.mode.startswith("I") and ";16" in repr(getattr(image, "tile", [])[:1])


def pixel_count(source: str | Path | BinaryIO) -> int:
    """Number of pixels that an image file says it has; 0 if it can't be opened, which decoding then says."""
    try:
        with opened(source, str(source)) as image:
            return image.width * image.height
    except ImageError:
        return 0


def check_pixels(size: tuple[int, int], name: str, most: int = MAX_PIXELS) -> None:
    """Raises ImageError if an image of this size, (width, height), is too large to decode."""
    most = min(most, Image.MAX_IMAGE_PIXELS or most)
    if size[0] * size[1] > most:
        raise ImageError(f"{name}: {size[0]}x{size[1]} are more than {most:,} pixels; cut it into tiles first")


@contextmanager
def opened(source: str | Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Opens an image of allowed size without decoding it; whatever goes wrong within the context becomes an ImageError."""
    with failures_named(name):
        if isinstance(source, (str, Path)):
            mode = os.stat(source).st_mode
            if stat.S_ISDIR(mode):
                raise ImageError(f"{name}: is a folder, not an image")
            if not stat.S_ISREG(mode):  # opening a pipe waits for a writer
                raise ImageError(f"{name}: is no regular file")
        else:
            source.seek(0)
        with Image.open(source, formats=FORMATS) as image:
            check_pixels(image.size, name, MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS)
            yield image


@contextmanager
def failures_named(name: str) -> Iterator[None]:
    """Turns whatever Pillow raises within the context into an ImageError; a damaged file can make it raise anything."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels; cut it into tiles first") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a readable image ({READ_FORMATS}); remove it or save it anew") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name}: can't be read ({error.strerror})") from error
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: damaged image ({reason}); remove it or save it anew") from error


def _check_tiles(image: Image.Image, name: str) -> None:
    """A TIFF's tile is decoded whole, however small the image is."""
    sides = [image.tag_v2.get(tag) for tag in (TILE_WIDTH, TILE_LENGTH)]
    if all(isinstance(side, int) for side in sides):
        check_pixels((sides[0], sides[1]), f"{name}, tile")


def _check_scans(file: BinaryIO, name: str) -> None:
    """Refuses a JPEG of so many scans that decoding it takes minutes."""
    position, scans, before = file.tell(), 0, b""
    file.seek(0)
    while part := file.read(2**20):
        scans += (before + part).count(START_OF_SCAN)
        before = part[-1:]
    file.seek(position)
    if scans > MOST_SCANS:
        raise ImageError(f"{name}: JPEG of {scans} scans, which no camera or program writes; save it anew")


def _count_pages(source: str | Path | BinaryIO, name: str) -> int:
    """Number of images in a file of several; one that can't be opened counts, and ends the search of a TIFF."""
    with opened(source, name) as image:
        if image.format != "TIFF":
            return image.n_frames
        count = 1
        while count < MOST_PAGES:
            try:
                image.seek(count)
            except EOFError:
                break
            except Exception:
                return count + 1
            count += 1
        return count
