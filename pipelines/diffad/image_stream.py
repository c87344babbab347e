"""A folder of any number of images as batches, read ahead by threads while the caller works on the one before."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from PIL import Image

from .data import DataError, image_files
from .image_io import IMAGE_SUFFIXES, ImageError

READERS = 4  # threads; Pillow decodes without holding the interpreter's lock
BATCHES_AHEAD = 2

Batch = list[tuple[str, Image.Image | ImageError]]


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


def read_batches(names: Sequence[str], read: Callable[[str], Image.Image], batch_size: int) -> Iterator[Batch]:
    """Batches of names with their images in order; an image that can't be used comes as its ImageError.

    Memory is bounded by `BATCHES_AHEAD + 1` batches of decoded images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    waiting: deque = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(names), batch_size):
            waiting.append([(name, pool.submit(_image_or_error, read, name)) for name in names[start : start + batch_size]])
            if len(waiting) > BATCHES_AHEAD:
                yield [(name, future.result()) for name, future in waiting.popleft()]
        while waiting:
            yield [(name, future.result()) for name, future in waiting.popleft()]


def _image_or_error(read: Callable[[str], Image.Image], name: str) -> Image.Image | ImageError:
    try:
        return read(name)
    except ImageError as error:
        return error
