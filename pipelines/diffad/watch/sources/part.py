"""A part to be judged, and what a source of parts is."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from PIL import Image

from ...imaging.decoding import ImageError


class PartKey(NamedTuple):
    """What tells a part from all others of its source.

    Args:
        name: path of an image relative to its folder, or of a frame.
        size: of the file, in bytes; 0 of a live stream's frame.
        modified: time of the file's last change, or of the frame; nanoseconds since 1970, UTC.
    """

    name: str
    size: int
    modified: int


@dataclass(frozen=True)
class Part:
    """One image of a source, 8-bit RGB, or why it can't be read."""

    key: PartKey
    image: Image.Image | ImageError


class Source(Protocol):
    """Gives each part once.

    Args:
        address: the same for the same source, however it is written.
        is_live: parts that nobody takes in time are dropped for newer ones, and nothing of a former run comes again.
    """

    address: str
    is_live: bool

    def parts(self, stop: threading.Event) -> Iterator[Part | None]:
        """Parts in their order, and None every now and then, which says that the source works. Ends with the source or `stop`.

        Raises:
            OSError, ValueError: if the source fails; calling again tries it again, and goes on after the latest part.
        """
