"""What operators said of verdicts, one JSON object a line, so that no entry is lost and files can be joined."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock

LABELS = ("good", "defective", "unknown")
CORRECT_LABELS = ("good", "defective")


@dataclass(frozen=True)
class FeedbackRecord:
    """An operator's word on one verdict.

    Args:
        name: of the image, as the operator knows it.
        digest: SHA-256 of the bytes of the image file, 64 hexadecimal digits; tells the image whatever it is called.
        verdict: that was given: good, defective, or unknown (a product that the model has never seen).
        correct_verdict: good or defective; equal to `verdict` where the operator confirms it.
        score, p_value: that the verdict came with; None if the operator's program did not keep them.
        time: ISO 8601 with the offset from UTC.
        note: free text.

    Raises:
        ValueError: naming the field that can't be used.
    """

    name: str
    digest: str
    verdict: str
    correct_verdict: str
    score: float | None
    p_value: float | None
    time: str
    note: str = ""

    def __post_init__(self):
        if self.verdict not in LABELS:
            raise ValueError(f"verdict must be one of {', '.join(LABELS)}, got {self.verdict!r}")
        if self.correct_verdict not in CORRECT_LABELS:
            raise ValueError(f"correct_verdict must be good or defective, got {self.correct_verdict!r}")
        if len(self.digest) != 64 or set(self.digest) - set("0123456789abcdef"):
            raise ValueError(f"digest must be the image's SHA-256, 64 hexadecimal digits, got {self.digest!r}")
        try:
            has_offset = self.moment.tzinfo is not None
        except ValueError:
            has_offset = False
        if not has_offset:
            raise ValueError(f"time must be ISO 8601 with an offset from UTC, got {self.time!r}")

    @property
    def moment(self) -> datetime:
        """The time, for comparisons."""
        return datetime.fromisoformat(self.time.replace("Z", "+00:00"))  # Python 3.10 does not know Z


def append_feedback(path: Path, record: FeedbackRecord) -> None:
    """Appends one line and syncs it to the disk before returning; several processes may share the file.

    A line that a power failure cut off stays as it is; the new one begins on a line of its own.

    Raises:
        OSError: if it can't be written, such as on a full disk; the file is then as before.
    """
    line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False).encode("utf-8", errors="backslashreplace") + b"\n"
    with FileLock(f"{path}.lock"), open(path, "ab+") as file:
        end = file.tell()
        if end:
            file.seek(end - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise
