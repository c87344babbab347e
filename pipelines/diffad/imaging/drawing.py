"""Pictures of results: heat maps on a scale that means the same on every image, overlays, sheets and filmstrips."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .array_maps import normal_level

OVERLAY_OPACITY = 0.65


def heat_map(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """Colours a map `(H, W)` as `(H, W, 3)` uint8: dark up to the normal level, brightest as far above the threshold as that.

    The scale is fixed by the threshold and not by the image, so that a good part stays dark.
    """
    from matplotlib import colormaps

    return (colormaps["inferno"](_strength(anomaly_map, threshold))[..., :3] * 255).round().astype(np.uint8)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """Lays the heat map over an image `(H, W, 3)` uint8, the stronger the more opaque; normal pixels stay as they are."""
    opacity = OVERLAY_OPACITY * np.minimum(2 * _strength(anomaly_map, threshold), 1)[..., None]
    return (image * (1 - opacity) + heat_map(anomaly_map, threshold) * opacity).round().astype(np.uint8)


def outline(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width: int = 1) -> np.ndarray:
    """Draws the inner border, `width` pixels wide, of a boolean mask `(H, W)` on a copy of an image `(H, W, 3)`."""
    from scipy.ndimage import binary_erosion

    drawn = image.copy()
    drawn[mask & ~binary_erosion(mask, iterations=width)] = colour
    return drawn


def marked(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    threshold: float,
    mask: np.ndarray,
    colour: tuple[int, int, int],
    width: int = 1,
) -> np.ndarray:
    """The image `(H, W, 3)` uint8 under its heat map, with a bool mask `(H, W)` outlined."""
    return outline(overlay(image, anomaly_map, threshold), mask, colour, width)


def save_sheet(path: Path, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """Writes rows of pictures `(H, W, 3)` uint8 under column titles, each row with its caption, as one PNG file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 8}):
        figure = Figure(figsize=(2.2 * len(columns), 2.45 * len(rows) + 0.3), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12)
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for row_axes, (caption, pictures) in zip(axes, rows, strict=True):
            for axis, picture in zip(row_axes, pictures, strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.axis("off")
            # Not in the layout: the caption may run on below the row's other pictures.
            place = row_axes[0].transAxes
            row_axes[0].text(0, -0.03, caption, transform=place, va="top", in_layout=False, parse_math=False)
        for axis, title in zip(axes[0], columns, strict=True):
            axis.set_title(title, weight="bold")
        figure.savefig(path, dpi=110)


def filmstrip(frames: Sequence[Image.Image], labels: Sequence[str], height: int = 256) -> Image.Image:
    """Lays frames side by side on white, each with its label below: the way from a defective part to a normal one.

    Every frame is brought to `height` pixels and to the aspect ratio of the first, because intermediate images come at the
    model's resolution, which need not have the photograph's shape. Labels wider than their frame are wrapped.

    Raises:
        ValueError: if there are no frames, or not one label for each.
    """
    from matplotlib import get_data_path

    if not frames or len(labels) != len(frames):
        raise ValueError(f"a filmstrip needs one label per frame, got {len(frames)} frames and {len(labels)} labels")
    width = max(1, round(height * frames[0].width / frames[0].height))
    gap, margin = max(2, height // 24), max(2, height // 32)
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size=max(9, height // 15))
    captions = [_wrapped(label, font, width) for label in labels]
    line_height = sum(font.getmetrics())
    caption_height = line_height * max(len(lines) for lines in captions)

    size = (gap + len(frames) * (width + gap), gap + height + margin + caption_height + margin)
    strip = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(strip)
    for i, (frame, lines) in enumerate(zip(frames, captions)):
        left = gap + i * (width + gap)
        strip.paste(frame.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (left, gap))
        for row, line in enumerate(lines):
            position = (left + width / 2, gap + height + margin + row * line_height)
            draw.text(position, line, fill="black", font=font, anchor="ma")
    return strip


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, first and last among them where they fit."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines no wider than `width` pixels, where words allow it."""
    lines = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An image as `(height, width, 3)` uint8 at `size` (height, width)."""
    return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _strength(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """0 at the normal level (0 for a positive threshold), 0.5 at the threshold, 1 from as far above the threshold on."""
    normal = normal_level(threshold)
    return np.clip((anomaly_map - normal) / (2 * (threshold - normal)), 0, 1)
