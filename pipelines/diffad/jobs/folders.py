"""Folders of images that a job reads, and of pictures that it writes."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..data import DataError, image_files
from ..imaging.reading import IMAGE_SUFFIXES


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


def picture_path(output: Path, name: str, suffix: str) -> Path:
    """Where a picture of the image of that name goes; its folder is made."""
    path = (output / name).with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
