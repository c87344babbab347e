"""Arguments of scoring that a pipeline and an exported model take alike."""

from collections.abc import Sized

from ..imaging.array_maps import is_size


def check_arguments(images: Sized, batch_size: int, map_size: tuple[int, int] | None = None) -> None:
    """Refuses what can't be scored with, before work starts.

    Raises:
        ValueError: naming the argument.
    """
    if not len(images):
        raise ValueError("no images given")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if map_size is not None and not is_size(map_size):
        raise ValueError(f"map_size must be (height, width) in pixels, got {map_size!r}")
