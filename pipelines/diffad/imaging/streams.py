"""Any number of images as batches, read ahead by threads while the caller works on the one before."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from .reading import ImageError

READERS = 4  # threads; Pillow decodes without holding the interpreter's lock
BATCHES_AHEAD = 2

Batch = list[tuple[str, Image.Image | ImageError]]


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
