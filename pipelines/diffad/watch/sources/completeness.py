"""Whether the end of an image file is there: what a camera still writes may decode already."""

import io
from pathlib import Path

# First bytes of formats that say where they end, and what stands there. Programs may add data after it.
ENDS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}
TAIL = 2**16  # bytes


def has_end(path: Path) -> bool:
    """Whether an image file that can be decoded is all there.

    A PNG or JPEG file has its end mark among its last 64 KiB; a BMP or WebP file has the size that it names. Other formats
    can't be decoded before they are complete.

    Raises:
        OSError: if the file can't be read.
    """
    with path.open("rb") as file:
        head = file.read(12)
        size = file.seek(0, io.SEEK_END)
        if head.startswith(b"BM"):
            return int.from_bytes(head[2:6], "little") <= size
        if head.startswith(b"RIFF"):
            return int.from_bytes(head[4:8], "little") + 8 <= size
        end = next((mark for start, mark in ENDS.items() if head.startswith(start)), b"")
        file.seek(max(0, size - TAIL))
        return end in file.read()
