"""Files that users of the web app send: read within limits, and called by their own names."""

import lzma
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NoReturn

from PIL import Image

from ..data import Sample
from ..imaging.decoding import ImageError, pixel_count
from ..imaging.reading import IMAGE_SUFFIXES, read_image

MAX_PIXELS = 50_000_000  # of an image, by default
MAX_UNPACKED_BYTES = 2**30  # of an archive's member: a few megabytes can unpack to a full disk
# What zipfile raises for archives and members that are damaged, encrypted or packed in a way that it does not know.
DAMAGED = (
    *(OSError, RuntimeError, NotImplementedError, ValueError, EOFError, OverflowError),
    *(zipfile.BadZipFile, struct.error, zlib.error, lzma.LZMAError),
)


def read_upload(path: str | Path, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """Reads an uploaded file as 8-bit RGB.

    Args:
        max_pixels: an image may have.
        name: how errors call the file; None is its own, without the place where the server put it.

    Raises:
        ImageError: if it is no readable image, or a larger one.
    """
    path = Path(path)
    name = name or path.name
    if (pixels := pixel_count(path)) > max_pixels:
        raise ImageError(f"{name}: {pixels / 1e6:.1f} megapixels, more than the {max_pixels / 1e6:g} that are taken")
    return read_image(path, name)


def uploaded_samples(paths: Sequence[str | Path], max_pixels: int = MAX_PIXELS) -> list[Sample]:
    """Images among uploaded files and in uploaded zip archives, with distinct names, read on demand.

    A zip's other members and hidden files are passed over; any other file counts as an image, whatever its name. An archive
    that can't be opened is one image that can't be read.

    Args:
        max_pixels: an image may have.
    """
    samples, used = [], Counter()
    for path in map(Path, paths):
        used[path.name] += 1
        name = path.name if used[path.name] == 1 else f"{path.stem} ({used[path.name]}){path.suffix}"
        if path.suffix.lower() == ".zip":
            samples += _archived_samples(path, name, max_pixels)
        else:
            samples.append(Sample(name, partial(read_upload, path, max_pixels, name), pixels=partial(pixel_count, path)))
    return samples


def _archived_samples(path: Path, name: str, max_pixels: int) -> list[Sample]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGED:
        return [Sample(name, partial(_refuse, f"{name}: not a readable zip archive; pack it anew"))]
    # Of members of one name the last one counts, as when an archive is unpacked.
    images = {member.filename: member for member in members if not member.is_dir() and _is_image(member.filename)}
    names = {f"{name}/{PurePosixPath(filename)}": images[filename] for filename in sorted(images)}
    return [
        Sample(full, partial(_read_member, path, member, full, max_pixels), pixels=partial(_member_pixels, path, member))
        for full, member in names.items()
    ]


def _refuse(reason: str) -> NoReturn:
    raise ImageError(reason)


def _is_image(filename: str) -> bool:
    path = PurePosixPath(filename)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _member_pixels(archive: Path, member: zipfile.ZipInfo) -> int:
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source:
            return pixel_count(source)
    except DAMAGED:  # reading it tells
        return 0


def _read_member(archive: Path, member: zipfile.ZipInfo, name: str, max_pixels: int) -> Image.Image:
    if member.file_size > MAX_UNPACKED_BYTES:
        raise ImageError(f"{name}: larger than {MAX_UNPACKED_BYTES // 2**20} MiB when unpacked")
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder, "image").with_suffix(PurePosixPath(member.filename).suffix)
        try:
            with zipfile.ZipFile(archive) as opened, opened.open(member) as source, unpacked.open("wb") as file:
                shutil.copyfileobj(source, file)
        except DAMAGED as error:
            raise ImageError(f"{name}: can't be unpacked ({error}); pack it anew without a password") from error
        return read_upload(unpacked, max_pixels, name)
