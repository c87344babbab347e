"""Valid image files of every documented format, and what chance makes of them: bytes, and parts with their checksums right."""

import io
import struct
import zlib

import numpy as np
from image_files_by_hand import pgm, png
from PIL import Image

SIZE = (13, 17)  # height, width
EXTREMES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


def _exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x010F], tags[0x0112], tags[0x011A] = "maker", orientation, 72.0
    tags.get_ifd(0x8769)[0x9286] = b"comment"
    return tags.tobytes()


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def valid_files() -> dict[str, bytes]:
    """Small files by names that end like their formats; colours, grey levels, bits, alpha, palettes, pages and EXIF data."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (*SIZE, 4), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, SIZE, dtype=np.uint16))
    mask = Image.fromarray((rng.random(SIZE) < 0.2).astype(np.uint8) * 255)
    files = {}
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp"), ("TIFF", "tif"), ("WEBP", "webp"), ("PPM", "ppm")):
        files[f"colour.{suffix}"] = _saved(colour, kind)
        files[f"mask.{suffix}"] = _saved(mask, kind)
        if suffix in ("png", "jpg", "webp"):
            files[f"turned.{suffix}"] = _saved(colour, kind, exif=_exif(6))
        if suffix in ("png", "bmp", "tif"):
            files[f"palette.{suffix}"] = _saved(colour.quantize(16), kind)
            files[f"bits.{suffix}"] = _saved(mask.convert("1"), kind)
        if suffix in ("png", "tif", "webp"):
            files[f"alpha.{suffix}"] = _saved(alpha, kind)
            files[f"pages.{suffix}"] = _saved(colour, kind, save_all=True, append_images=[colour.rotate(90), colour])
        if suffix in ("png", "tif"):
            files[f"deep.{suffix}"] = _saved(deep, kind)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_ccitt"):
        image = mask.convert("1") if compression == "tiff_ccitt" else colour
        files[f"{compression}.tif"] = _saved(image, "TIFF", compression=compression, tiffinfo={0x0112: 6})
    files["progressive.jpg"] = _saved(colour, "JPEG", progressive=True)
    files["cmyk.jpg"] = _saved(colour.convert("CMYK"), "JPEG")
    files["lossless.webp"] = _saved(alpha, "WEBP", lossless=True)
    files["deep.ppm"] = pgm(np.asarray(deep))
    files["bits.ppm"] = b"P4 17 13\n" + bytes(3 * 13)
    files["text.ppm"] = b"P2 17 13 9\n" + b" ".join(b"%d" % (i % 10) for i in range(17 * 13))
    files["deep_colour.png"] = png(17, 13, 16, 2, bytes((i * 7) % 256 if i % 103 else 0 for i in range(13 * 103)))
    return files


def mutated(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A file that one to three mutations have made of a valid one."""
    for _ in range(rng.integers(1, 4)):
        change = (_flipped, _overwritten, _cut, _spliced, _structural, _structural)[rng.integers(6)]
        content = _spliced(content, rng, others) if change is _spliced else change(content, rng)
    return content


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        if data:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(data)


def _overwritten(content: bytes, rng: np.random.Generator) -> bytes:
    """A whole number somewhere, most often near the beginning, becomes an extreme one."""
    width = int(rng.choice([1, 2, 4]))
    limit = min(len(content), 64) if rng.random() < 0.5 else len(content)
    if limit <= width:
        return content
    place = int(rng.integers(limit - width))
    value = int(rng.choice(EXTREMES)) % 256**width
    return content[:place] + value.to_bytes(width, rng.choice(["little", "big"])) + content[place + width :]


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    """A part is cut out, doubled, or everything after it is cut off."""
    start, end = sorted(rng.integers(0, len(content) + 1, 2))
    return (content[:start], content[:start] + content[end:], content[:end] + content[start:])[rng.integers(3)]


def _spliced(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """The beginning of one file before the end of another."""
    other = others[rng.integers(len(others))]
    return content[: rng.integers(len(content) + 1)] + other[rng.integers(len(other) + 1) :]


def _structural(content: bytes, rng: np.random.Generator) -> bytes:
    """A change to a part that the format knows, with checksums and lengths in order."""
    if content.startswith(b"\x89PNG"):
        return _png(content, rng)
    if content[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(content, rng)
    if content.startswith(b"RIFF"):
        return _webp(content, rng)
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content, rng)
    if content[:1] == b"P":
        return _numbers(content, rng)
    return _overwritten(content, rng)


def _shuffled(parts: list, rng: np.random.Generator) -> list:
    """A part is lost, doubled or moved."""
    if len(parts) < 2:
        return parts
    i, j = rng.integers(len(parts), size=2)
    action = rng.integers(3)
    if action == 0:
        return parts[:i] + parts[i + 1 :]
    if action == 1:
        return parts[:i] + [parts[j]] + parts[i:]
    parts[i], parts[j] = parts[j], parts[i]
    return parts


def _parts_changed(parts: list[tuple[bytes, bytes]], rng: np.random.Generator) -> list[tuple[bytes, bytes]]:
    """Named parts in another order, or with other content of one."""
    if not parts or rng.random() < 0.3:
        return _shuffled(parts, rng)
    i = rng.integers(len(parts))
    kind, data = parts[i]
    change = (_flipped, _overwritten, _cut)[rng.integers(3)]
    parts[i] = (kind, change(data, rng) if data else bytes(rng.integers(0, 256, 20, dtype=np.uint8)))
    return parts


def _png(content: bytes, rng: np.random.Generator) -> bytes:
    chunks, place = [], 8
    while place + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    joined = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in _parts_changed(chunks, rng))
    return content[:8] + b"".join(joined)


def _webp(content: bytes, rng: np.random.Generator) -> bytes:
    chunks, place = [], 12
    while place + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, place + 4)
        chunks.append((content[place : place + 4], content[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    body = b"".join(k + struct.pack("<I", len(d)) + d + bytes(len(d) % 2) for k, d in _parts_changed(chunks, rng))
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _jpeg(content: bytes, rng: np.random.Generator) -> bytes:
    """Segments before the first scan; what follows stays."""
    segments, place = [], 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", content, place + 2)
        segments.append((content[place : place + 2], content[place + 4 : place + 2 + length]))
        place += 2 + length
    head = b"".join(k + struct.pack(">H", (len(d) + 2) % 65536) + d for k, d in _parts_changed(segments, rng))
    return content[:2] + head + content[place:]


def _tiff(content: bytes, rng: np.random.Generator) -> bytes:
    """A field of an entry of the first directory becomes another tag, type, number or value."""
    order = "<" if content.startswith(b"II") else ">"
    data = bytearray(content)
    try:
        (start,) = struct.unpack_from(order + "L", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        entry = start + 2 + 12 * int(rng.integers(max(count, 1)))
        field = int(rng.integers(5))
        if field < 2:
            value = int(rng.choice([*EXTREMES[:12], 254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 317, 322, 339, 34665]))
            struct.pack_into(order + "H", data, entry + 2 * field, value if field == 0 else int(rng.integers(20)))
        elif field < 4:
            struct.pack_into(order + "L", data, entry + 4 * (field - 1), int(rng.choice(EXTREMES)))
        else:  # where the next page is
            struct.pack_into(order + "L", data, start + 2 + 12 * count, int(rng.integers(len(data) + 10)))
    except struct.error:
        return content
    return bytes(data)


def _numbers(content: bytes, rng: np.random.Generator) -> bytes:
    """A word of a header in letters becomes another one."""
    words = content[:40].split(b" ")
    words[rng.integers(len(words))] = str(rng.choice(EXTREMES)).encode() + rng.choice([b"", b"\n", b" 1", b"#x\n", b"-", b"e9"])
    return b" ".join(words) + content[40:]
