"""The report of a monitor: one HTML page that opens offline, or the same as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ...imaging.reading import ImageError, read_image
from ...monitoring.delays import Delay
from ...monitoring.image_statistics import Suggestion
from ...system.atomic import write_text
from ...system.text import printable
from .pictures import LONG_SIDE, data_uri

SHOWN_IMAGES = 4  # of reference and latest parts


@dataclass(frozen=True)
class TestLine:
    """One test: what it says now, where its alarm lies, and at which part it was raised, if it was."""

    __test__ = False  # no test of pytest

    name: str
    value: str
    limit: str
    alarm: int | None


@dataclass(frozen=True)
class MonitorSummary:
    """Content of the report.

    Args:
        changed: whether an alarm is up.
        parts, rejected, skipped: counts; skipped by reason.
        level, false_alarm_rate, defect_rate: settings.
        calibration_scores: n.
        tests: in the order of the page.
        likely_kind: of the change of the scores; None without an alarm of scores.
        history: points of `(parts, log10 e-value of scores, of the reject rate)`.
        history_limits: log10 of the e-values at which the two raise an alarm.
        blocks: p-value and allowed p-value of each block of the embedding test.
        delays: expected from simulations.
        suggestions: what changed in the images.
        notes: what could not be told, and why.
        reference_images, recent_images: files of which the page shows a few.
    """

    changed: bool
    parts: int
    rejected: int
    skipped: dict[str, int]
    level: float
    false_alarm_rate: float
    defect_rate: float
    calibration_scores: int
    tests: list[TestLine]
    likely_kind: str | None
    history: list[tuple[float, ...]]
    history_limits: list[float]
    blocks: list[tuple[float, float]]
    delays: list[Delay]
    suggestions: list[Suggestion]
    notes: list[str]
    reference_images: list[Path] = field(default_factory=list)
    recent_images: list[Path] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`ok` or `changed`."""
        return "changed" if self.changed else "ok"

    @property
    def lines(self) -> list[str]:
        """The summary in text, without history and pictures."""
        lines = [f"{count} skipped: {name}" for name, count in self.skipped.items()]
        for test in self.tests:
            alarm = "" if test.alarm is None else f"; ALARM at part {test.alarm}"
            lines.append(f"{test.name}: {test.value}, alarm at {test.limit}{alarm}")
        if self.likely_kind is not None:
            lines.append(f"scores of good parts: {self.likely_kind}")
        lines += [f"images of the latest parts: {suggestion}" for suggestion in self.suggestions]
        lines += [f"expected until an alarm: {delay_text(delay)}" for delay in self.delays]
        return lines + self.notes


def delay_text(delay: Delay) -> str:
    """One expected delay in words."""
    when = "from the start" if delay.change == 0 else f"after {delay.change:,} good parts"
    median = f"not within {delay.horizon:,} parts" if delay.median is None else f"{delay.median:.0f} parts"
    return f"{median} for scores that rise by {delay.shift:g} sd {when}"


def write_monitor_report(summary: MonitorSummary, path: Path) -> None:
    """Writes the report, whole or not at all; missing folders are made.

    Args:
        path: ending in `.html` or `.json`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(_as_json(summary), indent=1) + "\n")
        return
    from .plots import evidence_plot

    environment = Environment(
        loader=PackageLoader("diffad.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("monitoring.html.j2").render(
        summary=summary,
        delays=[delay_text(delay) for delay in summary.delays],
        plot=Markup(evidence_plot(summary.history, summary.history_limits)) if summary.history else None,
        pictures={"Reference": _pictures(summary.reference_images), "Latest parts": _pictures(summary.recent_images[::-1])},
    )
    write_text(path, printable(page))


def _as_json(summary: MonitorSummary) -> dict:
    """Without the files of the pictures; values that JSON does not have are cut to the largest that it has."""
    content = asdict(summary)
    for name in ("reference_images", "recent_images"):
        del content[name]
    content["history"] = [[value if math.isfinite(value) else None for value in point] for point in content["history"]]
    return {"state": summary.verdict, **content}


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
