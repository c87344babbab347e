"""Folders of images that a job reads, and of pictures that it writes."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..data import DataError, image_files
from ..imaging.reading import IMAGE_SUFFIXES

MAX_NAME_BYTES = 255  # of a file, on all usual file systems


def image_names(folder: Path, outputs: Sequence[Path] = ()) -> list[str]:
    """Paths of all images below a folder, relative to it and with `/`, in a fixed order.

    Args:
        outputs: folders to which [`picture_path`] will write pictures of these images.

    Raises:
        DataError: if there is no such folder, it holds no images, or the outputs would collide with the images or with
            each other.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise DataError(f"{outputs[0]}: several kinds of pictures would overwrite each other; name a folder for each")
    for output in outputs:
        if output.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{output}: lies in the folder of images, and would be taken for some of them; name another folder")
    names = [path.relative_to(folder).as_posix() for path in image_files(folder)]
    if not names:
        raise DataError(f"{folder}: no images found ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if outputs:
        seen: dict[PurePosixPath, str] = {}
        for name in names:
            other = seen.setdefault(PurePosixPath(name).with_suffix(""), name)
            if other != name:
                raise DataError(f"{folder}: {other} and {name} differ in their ending only; rename one")
    return names


def images_of(path: Path, outputs: Sequence[Path] = ()) -> tuple[Path, list[str]]:
    """The folder of a job's images and their names in it: of all below a folder, or of a single image file.

    Args:
        outputs: folders to which [`picture_path`] will write pictures of these images.

    Raises:
        DataError: as [`image_names`].
    """
    if not path.is_file():
        return path, image_names(path, outputs)
    for output in outputs:
        if output.resolve() == path.parent.resolve():
            raise DataError(f"{output}: is the folder of the image; name another folder for pictures of it")
    return path.parent, [path.name]


def picture_path(output: Path, name: str, suffix: str) -> Path:
    """Where a picture of the image of that name goes; its folder is made.

    A name that would be too long with the picture's ending is cut, and told from others by digits of a hash.
    """
    path = (output / name).with_suffix(suffix)
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        digits = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        kept = os.fsencode(path.stem)[: MAX_NAME_BYTES - len(f"-{digits}{suffix}")].decode(errors="ignore")
        path = path.with_name(f"{kept}-{digits}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
