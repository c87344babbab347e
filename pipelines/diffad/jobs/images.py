"""Where the images of a job lie: in a folder of this machine, or in an object store (`s3://bucket/folder`)."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
from PIL import Image
from pyarrow import fs

from ..data import DataError
from ..data.walk import is_image_name, is_left_out
from ..imaging.decoding import ImageError, pixel_count
from ..imaging.reading import IMAGE_SUFFIXES, read_image
from ..system.text import one_line
from .folders import images_of
from .resume import digest_of_files, files_digest

# By which a store says that an image may not be read, or is gone since it was listed; all else says nothing of the image.
OF_ONE_IMAGE = ("ACCESS_DENIED", "NO_SUCH_KEY")


class Images(NamedTuple):
    """The images of a job.

    Args:
        folder: that they lie below; a path, or the address of an object store.
        names: of all of them, relative to the folder and with `/`, in a fixed order.
        digest: tells whether names, sizes and times of change are the same.
    """

    folder: str
    names: list[str]
    digest: str


def is_stored(folder: str | Path) -> bool:
    """Whether images lie in an object store and not in a folder."""
    return "://" in str(folder)


def list_images(folder: str | Path, outputs: Sequence[Path] = ()) -> Images:
    """All images below a folder or an address, or a single image.

    Args:
        outputs: folders to which pictures of these images will be written.

    Raises:
        DataError: as [`diffad.jobs.folders.image_names`], or naming an address that can't be used.
        OSError: if an object store can't be reached.
    """
    if is_stored(folder):
        return _list_stored(str(folder))
    folder, names = images_of(Path(folder), outputs)
    return Images(str(folder), names, files_digest(folder, names))


def reader_of(folder: str, base: Path = Path()) -> "FolderReader | StoreReader":
    """What reads the images below a folder or an address by their names.

    Args:
        base: of a relative folder, for a process that works elsewhere.
    """
    return StoreReader(folder) if is_stored(folder) else FolderReader(Path(folder), base)


@dataclass(frozen=True)
class FolderReader:
    """Reads images below a folder, which errors call as it was given."""

    folder: Path
    base: Path = Path()

    def read(self, name: str) -> Image.Image:
        """An image as 8-bit RGB, or ImageError."""
        return read_image(self.base / self.folder / name, str(self.folder / name))

    def pixels(self, name: str) -> int:
        """Number of an image's pixels, without decoding it."""
        return pixel_count(self.base / self.folder / name)


class StoreReader:
    """Reads images below an address of an object store.

    Their number of pixels is not known beforehand, which would take further requests: it counts as 0.

    Raises:
        DataError: if the address can't be used.
    """

    def __init__(self, address: str):
        self.files, self.folder = _opened(address)

    def read(self, name: str) -> Image.Image:
        """An image as 8-bit RGB.

        Raises:
            ImageError: if it is missing, forbidden, or no image that can be used.
            OSError: if the store can't be reached: this says nothing of the image.
        """
        try:
            with self.files.open_input_file(f"{self.folder}/{name}") as file:
                content = file.read()
        except FileNotFoundError as error:
            raise ImageError(f"{name}: no such file") from error
        except OSError as error:
            if any(code in str(error) for code in OF_ONE_IMAGE):
                raise ImageError(f"{name}: can't be read ({one_line(error)})") from error
            raise
        return read_image(io.BytesIO(content), name)

    def pixels(self, name: str) -> int:
        return 0


def _list_stored(address: str) -> Images:
    files, folder = _opened(address)
    if files.get_file_info(folder).type == fs.FileType.File:
        parent, _, name = folder.rpartition("/")
        found = [files.get_file_info(folder)]
        above = urlsplit(address)
        address, folder, names = above._replace(path=above.path.rpartition("/")[0]).geturl(), parent, [name]
    else:
        listed = files.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
        by_name = {info.path[len(folder) :].strip("/"): info for info in listed if info.type == fs.FileType.File}
        # In the order of paths, as in a folder.
        names = sorted(filter(_is_wanted, by_name), key=lambda name: name.split("/"))
        found = [by_name[name] for name in names]
    if not names:
        raise DataError(f"{address}: no images found ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return Images(address, names, digest_of_files((name, info.size, info.mtime_ns) for name, info in zip(names, found)))


def _is_wanted(name: str) -> bool:
    *folders, file = name.split("/")
    return is_image_name(file) and not any(map(is_left_out, folders))


def _opened(address: str) -> tuple[fs.FileSystem, str]:
    """A file system and the path within it."""
    if urlsplit(address).password is not None:
        raise DataError("an address with a password in it would stand in logs and records; give it in the environment")
    try:
        files, folder = fs.FileSystem.from_uri(address)
    except (ValueError, pa.ArrowException, ImportError) as error:
        raise DataError(f"{address}: can't be opened ({one_line(error)}); name a folder, or s3://BUCKET/FOLDER") from None
    return files, folder.rstrip("/")
