"""The report of a monitor: one HTML page that opens offline."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from ...imaging.reading import ImageError, read_image
from ...monitoring.summary import MonitorSummary, delay_text
from ...system.atomic import write_text
from ...system.text import printable
from .pictures import LONG_SIDE, data_uri
from .plots import evidence_plot
from .render import template

SHOWN_IMAGES = 4  # of reference and latest parts


def write_monitor_report(summary: MonitorSummary, path: Path) -> None:
    """Writes the page, whole or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = template("monitoring.html.j2").render(
        summary=summary,
        delays=[delay_text(delay) for delay in summary.delays],
        plot=Markup(evidence_plot(summary.history, summary.history_limits)) if summary.history else None,
        pictures={"Reference": _pictures(summary.reference_images), "Latest parts": _pictures(summary.recent_images[::-1])},
    )
    write_text(path, printable(page))


def _pictures(paths: Sequence[Path]) -> list[str]:
    """Small pictures of the first files that can be read, as addresses."""
    found: list[str] = []
    for path in paths:
        if len(found) == SHOWN_IMAGES:
            break
        try:
            image = read_image(path)
        except ImageError:
            continue
        image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.BILINEAR)
        found.append(data_uri(image))
    return found
