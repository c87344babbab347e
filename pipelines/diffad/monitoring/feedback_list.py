"""The list of what operators said of verdicts, read: the latest word on each image, and what follows from it.

An operator looks at parts because of what the model said of them, so that the parts of the list are no random sample: wrongly
rejected parts alone have scores above the threshold, all of them. They may show a model what good parts look like, but
thresholds come from parts that were drawn whatever their score was.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from .feedback import FeedbackRecord


@dataclass(frozen=True)
class FeedbackList:
    """The latest record on each image.

    Args:
        records: by the digest of the image file.
        cut_off: lines that are no whole JSON, as a power failure leaves them; they are passed over.
    """

    records: dict[str, FeedbackRecord] = field(default_factory=dict)
    cut_off: int = 0

    def add(self, record: FeedbackRecord) -> None:
        """Takes a record in place of an earlier one on the same image."""
        former = self.records.get(record.digest)
        if former is None or former.moment <= record.moment:
            self.records[record.digest] = record

    @property
    def wrongly_rejected(self) -> set[str]:
        """Digests of good parts that were not called good."""
        return {d for d, record in self.records.items() if record.verdict != "good" and record.correct_verdict == "good"}

    @property
    def missed(self) -> set[str]:
        """Digests of defective parts that were called good."""
        return {d for d, record in self.records.items() if record.verdict == "good" and record.correct_verdict == "defective"}

    @property
    def defective(self) -> set[str]:
        """Digests of all parts that are defective by the operator's word, missed or found."""
        return {d for d, record in self.records.items() if record.correct_verdict == "defective"}


def read_feedback(path: Path) -> FeedbackList:
    """Reads a list that serve, the app or a report wrote; of several records on one image the latest counts.

    Raises:
        ValueError: naming the file, or the line that is JSON but no record.
        OSError: if it can't be read.
    """
    found, cut_off = _read(path)
    if cut_off and not found.records:
        raise ValueError(f"{path}: no line of it is JSON; give a list of feedback, as serve, the app or a report writes it")
    return replace(found, cut_off=cut_off)


def read_feedback_so_far(path: Path) -> FeedbackList:
    """The same of a list that is still written: it need not exist yet, and its only line may be cut off.

    Raises:
        ValueError: naming the line that is JSON but no record.
        OSError: if it can't be read.
    """
    return _read(path)[0] if path.is_file() else FeedbackList()


def check_drawn_at_random(digests: Collection[str], feedback: FeedbackList, source: object) -> None:
    """Refuses images to calibrate on of which most are in the list because the model rejected them.

    It finds what is plain only. That images were drawn whatever the model said of them is for the user to see to.

    Args:
        digests: of the images.
        source: where they come from, for the error.

    Raises:
        ValueError: saying what to do.
    """
    chosen = len(feedback.wrongly_rejected & set(digests))
    if 2 * chosen > len(digests):
        raise ValueError(
            f"{source}: {chosen} of {len(digests)} images were reported as wrongly rejected. Images that were chosen because "
            "of their score can't set thresholds: give good parts drawn at random, rejected or not"
        )


def _read(path: Path) -> tuple[FeedbackList, int]:
    """The records of a file, and how many lines are cut off."""
    found, cut_off = FeedbackList(), 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            cut_off += 1
            continue
        found.add(_record(values, f"{path}: line {number}"))
    return found, cut_off


def _record(values: object, where: str) -> FeedbackRecord:
    names = [field.name for field in fields(FeedbackRecord)]
    if not isinstance(values, dict) or {*values, "note"} != set(names):
        raise ValueError(f"{where}: not a record of feedback, which has {', '.join(names)}")
    for name in ("name", "digest", "verdict", "correct_verdict", "time", "note"):
        if not isinstance(values.get(name, ""), str):
            raise ValueError(f"{where}: {name} must be text, got {values[name]!r:.60}")
    for name in ("score", "p_value"):
        if not isinstance(values[name], int | float | None) or isinstance(values[name], bool):
            raise ValueError(f"{where}: {name} must be a number or null, got {values[name]!r:.60}")
    try:
        return FeedbackRecord(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
