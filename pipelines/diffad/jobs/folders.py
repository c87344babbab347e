"""Folders of images that a job reads, and of pictures that it writes."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..data import DataError, image_files
from ..imaging.reading import IMAGE_SUFFIXES

LONGEST_NAME = 255  # bytes, of most file systems


def image_folder(source: Path) -> Path:
    """The folder that the names of [`image_names`] are relative to: the source itself, or that of a single image."""
    return source.parent if source.is_file() else source


def image_names(source: Path, outputs: Sequence[Path] = ()) -> list[str]:
    """Paths of all images below a folder, relative to it and with `/`, in a fixed order; or the name of a single image.

    Args:
        source: folder, or image file.
        outputs: folders to which [`picture_path`] will write pictures of these images.

    Raises:
        DataError: if there is no such folder, it holds no images, or the outputs would collide with the images or with
            each other.
    """
    if not source.exists():
        raise DataError(f"{source}: no such folder or image")
    folder = image_folder(source)
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise DataError(f"{outputs[0]}: several kinds of pictures would overwrite each other; name a folder for each")
    for output in outputs:
        if output.resolve() == folder.resolve() or (source.is_dir() and output.resolve().is_relative_to(folder.resolve())):
            raise DataError(f"{output}: lies in the folder of images, and would be taken for some of them; name another folder")
    if source.is_file():
        return [source.name]
    names = [path.relative_to(source).as_posix() for path in image_files(source)]
    if not names:
        raise DataError(f"{source}: no images found ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if outputs:
        seen: dict[PurePosixPath, str] = {}
        for name in names:
            other = seen.setdefault(PurePosixPath(name).with_suffix(""), name)
            if other != name:
                raise DataError(f"{source}: {other} and {name} differ in their ending only; rename one")
    return names


def picture_path(output: Path, name: str, suffix: str) -> Path:
    """Where a picture of the image of that name goes; its folder is made. A name too long for a file is cut and told apart."""
    path = (output / name).with_suffix(suffix)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.stem)).hexdigest()[:8]
        room = LONGEST_NAME - len(digest) - len(suffix) - 1
        path = path.with_name(f"{os.fsencode(path.stem)[:room].decode(errors='ignore')}~{digest}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
