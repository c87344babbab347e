"""Pictures of results: heat maps on a scale that means the same on every image, overlays and sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

OVERLAY_OPACITY = 0.65


def heat_map(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """Colours a map `(H, W)` as `(H, W, 3)` uint8: dark below the typical normal pixel, brightest from twice the threshold on.

    The scale is fixed by the threshold and not by the image, so that a good part stays dark.
    """
    from matplotlib import colormaps

    return (colormaps["inferno"](_strength(anomaly_map, threshold))[..., :3] * 255).round().astype(np.uint8)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """Lays the heat map over an image `(H, W, 3)` uint8, the stronger the more opaque; normal pixels stay as they are."""
    opacity = OVERLAY_OPACITY * np.minimum(2 * _strength(anomaly_map, threshold), 1)[..., None]
    return (image * (1 - opacity) + heat_map(anomaly_map, threshold) * opacity).round().astype(np.uint8)


def outline(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Draws the inner border of a boolean mask `(H, W)` on a copy of an image `(H, W, 3)`."""
    from scipy.ndimage import binary_erosion

    drawn = image.copy()
    drawn[mask & ~binary_erosion(mask)] = colour
    return drawn


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
            row_axes[0].text(0, -0.03, caption, transform=row_axes[0].transAxes, va="top", in_layout=False)
        for axis, title in zip(axes[0], columns, strict=True):
            axis.set_title(title, weight="bold")
        figure.savefig(path, dpi=110)


def resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An image as `(height, width, 3)` uint8 at `size` (height, width)."""
    return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _strength(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """0 at the mean of normal pixels (which standardisation puts at 0), 0.5 at the threshold, 1 from twice the threshold."""
    return np.clip(anomaly_map / (2 * threshold), 0, 1)
