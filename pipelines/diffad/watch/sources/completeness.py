"""Whether the end of an image file is there: what a camera still writes may decode already."""

from pathlib import Path

# First bytes of formats that say where they end, and what stands there. Programs may add data after it.
ENDS = {b"\x89PNG": b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}
TAIL = 2**16  # bytes


def has_end(path: Path) -> bool:
    """Whether a PNG or JPEG file has its end mark among its last 64 KiB; files of other formats have it by their size.

    Raises:
        OSError: if the file can't be read.
    """
    with path.open("rb") as file:
        head = file.read(4)
        end = next((mark for start, mark in ENDS.items() if head.startswith(start)), None)
        if end is None:
            return True
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL))
        return end in file.read()
