"""The right way up of an image: the orientation of its EXIF or XMP data, read alone, so that other damaged tags do no harm."""

import re
import struct

from PIL import Image

ORIENTATION = 0x0112
BYTE_ORDERS = {b"II": "<", b"MM": ">"}
VALUE_FORMATS = {1: "B", 3: "H", 4: "L"}  # EXIF types byte, short and long
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SOURCES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow keeps what tells it


def upright(image: Image.Image) -> Image.Image:
    """Decodes an image and turns it as it is meant to be seen; one that lies right already is returned itself.

    Raises:
        ValueError: if its EXIF data are so damaged that the orientation is unknown.
    """
    image.load()
    method = METHODS.get(_orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    for key in SOURCES:
        turned.info.pop(key, None)
    return turned


def exif_orientation(exif: bytes) -> int | None:
    """Orientation 1 to 8 in a block of EXIF data, None if it tells none.

    Raises:
        ValueError: if the block is damaged before that is known.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    if not exif:
        return None
    order = BYTE_ORDERS.get(exif[:2])
    if order is None or exif[2:4] not in (b"*\0", b"\0*"):
        raise ValueError("EXIF data without their header, so that its orientation is unknown")
    try:
        (start,) = struct.unpack_from(order + "L", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == ORIENTATION:
                return struct.unpack_from(order + VALUE_FORMATS[kind], exif, entry + 8)[0] if kind in VALUE_FORMATS else None
    except struct.error as error:
        raise ValueError("EXIF data cut off, so that its orientation is unknown") from error
    return None


def _orientation(image: Image.Image) -> int | None:
    if hasattr(image, "tag_v2"):  # a TIFF's tags are EXIF data
        found = image.tag_v2.get(ORIENTATION)
    else:
        exif = image.info.get("exif")
        if exif is None and "Raw profile type exif" in image.info:
            exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        found = exif_orientation(exif) if exif else None
    if found is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp.encode() if isinstance(xmp, str) else xmp)
        found = int(match[1]) if match else None
    return found
