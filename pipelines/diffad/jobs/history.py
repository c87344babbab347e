"""What was done to a model after its training: `history.json` beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..model_index import read_json_object

FILE = "history.json"
UPDATE, CALIBRATION = "update", "calibration"


@dataclass(frozen=True)
class HistoryEntry:
    """One update or calibration.

    Args:
        event: `update` or `calibration`.
        version: of diffad.
        model_before, model_after: digests of the model.
        folder: of the images; on the Hub its name alone.
        calibrated: names of its images that thresholds come from.
        fitted: names of its images that the Gaussians were fitted to.
        images: SHA-256 over the digests of all images that were taken.
        replaces: whether the images that the model was calibrated on before don't count any more.
        counts: of images, by what became of them.
        date: ISO 8601, UTC.
    """

    event: str
    version: str
    model_before: str
    model_after: str
    folder: str
    calibrated: Sequence[str]
    fitted: Sequence[str] = ()
    images: str = ""
    replaces: bool = True
    counts: Mapping[str, int] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in self.counts.items() if count)
        return f"{counts} (from {Path(self.folder).name}); model {self.model_before} before, {self.model_after} after"


def read_history(model: Path) -> list[HistoryEntry]:
    """All entries, the oldest first; none where nothing was done.

    Raises:
        ValueError: if the file is damaged.
    """
    path = model / FILE
    if not path.is_file():
        return []
    try:
        return [HistoryEntry(**entry) for entry in read_json_object(path)["history"]]
    except (KeyError, TypeError):
        raise ValueError(f"{path}: damaged; copy the model's folder anew") from None


def write_history(entries: Sequence[HistoryEntry], folder: Path) -> None:
    """Writes the file."""
    text = json.dumps({"history": [asdict(entry) for entry in entries]}, indent=1)
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def counting(entries: Sequence[HistoryEntry]) -> tuple[bool, list[HistoryEntry]]:
    """Whether the images held out in training still calibrate, and the entries whose images do besides."""
    last = max((i for i, entry in enumerate(entries) if entry.replaces), default=None)
    return last is None, list(entries[last or 0 :])


def summary(entries: Sequence[HistoryEntry]) -> dict[str, str]:
    """Headings and text of `diffad info`."""
    return {f"{entry.event} {entry.date[:16].replace('T', ' ')}": str(entry) for entry in entries}
