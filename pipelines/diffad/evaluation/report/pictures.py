"""The pictures of one image, small enough for a page that carries hundreds."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...imaging.drawing import heat_map, marked, outline

LONG_SIDE = 256  # pixels
WEBP_QUALITY = 80
CALLED_COLOUR, TRUTH_COLOUR = (0, 160, 255), (0, 255, 0)


@dataclass(frozen=True)
class Pictures:
    """RGB images of one size: what came in, its heat map, both with outlines, and the repaired image if there is one."""

    input: Image.Image
    heat_map: Image.Image
    overlay: Image.Image
    repaired: Image.Image | None = None


def draw_pictures(
    image: Image.Image,
    anomaly_map: np.ndarray,
    pixel_threshold: float,
    called: np.ndarray,
    truth: np.ndarray | None = None,
    repaired: Image.Image | None = None,
) -> Pictures:
    """Draws the pictures of an image, at most 256 pixels long.

    Args:
        image, repaired: RGB images of any size.
        anomaly_map: `(height, width)` of any size.
        pixel_threshold: at which the heat map is half as bright as it can be.
        called: `(height, width)` bool mask of any size of the pixels called defective, outlined in blue.
        truth: `(height, width)` bool mask of any size, outlined in green.
    """
    scale = min(1.0, LONG_SIDE / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = np.asarray(_shrink(image, (width, height)))
    anomaly_map = _fit(anomaly_map, (height, width))
    overlaid = marked(pixels, anomaly_map, pixel_threshold, _fit(called, (height, width)) > 0, CALLED_COLOUR)
    if truth is not None:
        overlaid = outline(overlaid, _fit(truth, (height, width)) > 0, TRUTH_COLOUR)
    return Pictures(
        input=Image.fromarray(pixels),
        heat_map=Image.fromarray(heat_map(anomaly_map, pixel_threshold)),
        overlay=Image.fromarray(overlaid),
        repaired=None if repaired is None else _shrink(repaired, (width, height)),
    )


def data_uri(picture: Image.Image) -> str:
    """The picture itself as an address, as lossy WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize(size, Image.Resampling.BILINEAR)


def _fit(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings a map or mask to a picture's size by its maxima, so that a small defect does not vanish."""
    tensor = torch.from_numpy(np.array(values, dtype=np.float32))
    return F.adaptive_max_pool2d(tensor[None], size)[0].numpy()
