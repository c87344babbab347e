"""Lists of what operators said, for tests."""

from collections.abc import Sequence
from pathlib import Path

from diffad.monitoring.feedback import FeedbackRecord, append_feedback
from diffad.system.file_digest import file_digest

TIME = "2026-11-29T12:00:00+00:00"


def write_feedback(path: Path, missed: Sequence[Path] = (), wrongly_rejected: Sequence[Path] = ()) -> Path:
    """A list that calls some image files missed defects and others wrongly rejected."""
    for images, verdict, correct in ((missed, "good", "defective"), (wrongly_rejected, "defective", "good")):
        for image in images:
            append_feedback(path, FeedbackRecord(image.name, file_digest(image), verdict, correct, 1.0, 0.2, TIME))
    return path
