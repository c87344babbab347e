"""What a monitor has seen, for people and programs to read."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from .delays import Delay
from .suggestions import Suggestion


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
        looks: p-value and allowed p-value of the latest comparisons of the embedding test.
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
    looks: list[tuple[float, float]]
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

    def as_json(self) -> dict:
        """The content as values JSON can hold, without the files of pictures."""
        content = asdict(self)
        for name in ("reference_images", "recent_images"):
            del content[name]
        return {"state": self.verdict, **content}


def delay_text(delay: Delay) -> str:
    """One expected delay in words."""
    when = "from the start" if delay.change == 0 else f"after {delay.change:,} good parts"
    median = f"not within {delay.horizon:,} parts" if delay.median is None else f"{delay.median:.0f} parts"
    return f"{median} for scores that rise by {delay.shift:g} sd {when}"
