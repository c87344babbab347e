"""Answers requests to a Hugging Face Inference Endpoint of this repository.

`diffad push` copies this file to the repository as `handler.py`. It needs no installed diffad: the repository has the code.
"""

import base64
import io
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from scipy.ndimage import find_objects, label

PARAMETERS = ("false_alarm_rate", "category", "mask", "repair")
EIGHT_NEIGHBOURS = np.ones((3, 3))


class EndpointHandler:
    """Scores the images of a request, and repairs them on demand.

    Args:
        path: folder of the repository.
    """

    def __init__(self, path: str = ""):
        # The code is that of the repository which this file comes from.
        self.pipe = DiffusionPipeline.from_pretrained(path, trust_remote_code=True)
        self.pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """One row for each image: score, p-value, label, threshold and boxes of the defects.

        Args:
            data: `inputs`, an image as the service decodes it, its file as bytes or in base64, or a list of these; and
                `parameters`, perhaps: `false_alarm_rate`, `category`, `mask` and `repair` (true adds a PNG in base64).

        Raises:
            ValueError: if there is no image, one can't be read, or a parameter is unknown or can't be used.
        """
        parameters = data.get("parameters") or {}
        if unknown := sorted(set(parameters).difference(PARAMETERS)):
            raise ValueError(f"unknown parameters {', '.join(unknown)}; there are {', '.join(PARAMETERS)}")
        inputs = data.get("inputs")
        inputs = inputs if isinstance(inputs, list) else [inputs]
        images = [read_image(image, number) for number, image in enumerate(inputs, start=1)]
        settings = {"categories": parameters.get("category"), "false_alarm_rate": parameters.get("false_alarm_rate")}
        output = self.pipe(images, **settings)
        rows = [row_of(output, i) for i in range(len(images))]
        if parameters.get("mask"):
            for row, mask in zip(rows, output.masks, strict=True):
                row["mask_png"] = as_png(Image.fromarray(mask.astype(np.uint8) * 255))
        if parameters.get("repair"):
            repair = self.pipe.reconstruct(images, **settings)
            for row, image, confident in zip(rows, repair.images, repair.confident, strict=True):
                row |= {"repaired_png": as_png(image), "confident": bool(confident)}
        return rows


def read_image(given: Any, number: int) -> Image.Image:
    """An RGB image from what a request holds; `number` counts from 1, for messages."""
    try:
        if isinstance(given, Image.Image):
            return given.convert("RGB")
        file = base64.b64decode(given, validate=True) if isinstance(given, str) else bytes(given)
        with Image.open(io.BytesIO(file)) as image:
            return image.convert("RGB")
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"image {number} is no image file in base64: {error}") from None


def row_of(output: Any, i: int) -> dict[str, Any]:
    """What the model says of image i; boxes are `[left, top, right, bottom]` in pixels, the largest defect first."""
    category = None if output.categories is None else output.categories[i]
    is_unknown = output.categories is not None and category is None
    regions, count = label(output.masks[i], EIGHT_NEIGHBOURS)
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    places = find_objects(regions)
    boxes = [places[k] for k in np.argsort(-areas, kind="stable")]
    return {
        "score": float(output.image_scores[i]),
        "p_value": float(output.p_values[i]),
        "label": "unknown" if is_unknown else "defective" if output.is_defective[i] else "good",
        "image_threshold": float(output.image_thresholds[i]),
        "false_alarm_rate": float(output.false_alarm_rates[i]),
        "category": category,
        "boxes": [[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in boxes],
    }


def as_png(image: Image.Image) -> str:
    """A PNG file in base64."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
