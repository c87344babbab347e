"""Image files that no library writes: of any size in a few bytes, and with 16 bits per colour."""

import struct
import zlib

import numpy as np


def png(width: int, height: int, bits: int = 8, colour: int = 2, rows: bytes = b"\0") -> bytes:
    """A PNG file of that size, of which the rows may lack."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def tiff_with_tile(side: int) -> bytes:
    """A TIFF of 32x28 pixels in one compressed tile of `side` squared."""
    tags = [(256, 32), (257, 28), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 134), (325, 100)]
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + zlib.compress(bytes(100_000), 9)


def pgm(levels: np.ndarray) -> bytes:
    """A PGM file of levels `(height, width)` of 16 bits, which older releases of Pillow don't write."""
    return b"P5 %d %d 65535\n" % levels.shape[::-1] + levels.astype(">u2").tobytes()
