"""Verdicts as rows of a table."""

from collections.abc import Sequence

from ..imaging.regions import bounding_boxes
from ..system.text import printable
from .detector import Detections


def rows_of(names: Sequence[str], output: Detections) -> list[dict]:
    """One row per image, with the columns of `diffad.jobs.table.SCHEMA` that have a value.

    Args:
        names: of the images.
        output: on them, an exported model's or, with the same fields as arrays, a pipeline's.
    """
    rows = []
    for i, name in enumerate(names):
        mask = output.masks[i]
        boxes = bounding_boxes(mask)
        is_unknown = output.categories is not None and output.categories[i] is None
        rows.append(
            {
                "path": printable(name),
                "score": float(output.image_scores[i]),
                "p_value": float(output.p_values[i]),
                "label": "unknown" if is_unknown else "defective" if output.is_defective[i] else "good",
                "defect_pixels": int(mask.sum()),
                "defect_share": float(mask.mean()),
                "defects": len(boxes),
                "boxes": boxes,
                "category": None if output.categories is None else output.categories[i],
                "false_alarm_rate": float(output.false_alarm_rates[i]),
                "image_threshold": float(output.image_thresholds[i]),
                "pixel_threshold": float(output.pixel_thresholds[i]),
            }
        )
    return rows
