"""Any number of images as batches, read ahead by threads while the caller works on the one before."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from PIL import Image

from .decoding import MAX_PIXELS, ImageError

READERS = 4  # threads; Pillow decodes without holding the interpreter's lock
BATCHES_AHEAD = 2
PIXELS_AHEAD = MAX_PIXELS  # of a batch, and of all that are read ahead together

Batch = list[tuple[str, Image.Image | ImageError]]


def read_batches(
    names: Sequence[str],
    read: Callable[[str], Image.Image],
    batch_size: int,
    pixels: Callable[[str], int] | None = None,
) -> Iterator[Batch]:
    """Batches of names with their images in order; an image that can't be used comes as its ImageError.

    Memory is bounded: besides the batch that the caller has, at most two batches and at most `PIXELS_AHEAD` pixels, or one
    larger image, are read ahead.

    Args:
        batch_size: images per batch; fewer where together they would have more than `PIXELS_AHEAD` pixels.
        pixels: number of pixels of an image by its name, told without decoding it, such as
            [`diffad.imaging.decoding.pixel_count`]; None if the images are small or in memory anyway.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    waiting: deque[tuple[int, list[tuple[str, Future]]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for batch, size in _batches(names, batch_size, pixels or (lambda name: 0)):
            while waiting and (len(waiting) > BATCHES_AHEAD or sum(ahead for ahead, _ in waiting) + size > PIXELS_AHEAD):
                yield [(name, future.result()) for name, future in waiting.popleft()[1]]
            waiting.append((size, [(name, pool.submit(_image_or_error, read, name)) for name in batch]))
        while waiting:
            yield [(name, future.result()) for name, future in waiting.popleft()[1]]


def _batches(names: Sequence[str], batch_size: int, pixels: Callable[[str], int]) -> Iterator[tuple[list[str], int]]:
    """Names of each batch and the number of its pixels."""
    batch: list[str] = []
    size = 0
    for name in names:
        own = pixels(name)
        if batch and (len(batch) == batch_size or size + own > PIXELS_AHEAD):
            yield batch, size
            batch, size = [], 0
        batch.append(name)
        size += own
    if batch:
        yield batch, size


def _image_or_error(read: Callable[[str], Image.Image], name: str) -> Image.Image | ImageError:
    try:
        return read(name)
    except ImageError as error:
        return error
