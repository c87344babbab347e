"""Verdicts that a user of the web app calls wrong, appended to the list of feedback."""

import hashlib
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from ..monitoring.feedback import FeedbackRecord, append_feedback
from ..scoring.judging import Judging
from ..system.file_digest import file_digest
from .inspected_image import InspectedImage

MOST_CONVERTED = 1000  # images that the page has turned into PNG and whose files are remembered


class OperatorsWord:
    """Writes records of feedback.

    Args:
        path: of the list, JSON lines; it is made if it does not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self._converted: OrderedDict[bytes, tuple[str, str]] = OrderedDict()

    def remember(self, path: Path, image: Image.Image) -> None:
        """Keeps name and digest of a file whose pixels the page will show as another file."""
        self._converted[_key(image)] = path.name, file_digest(path)
        if len(self._converted) > MOST_CONVERTED:
            self._converted.popitem(last=False)

    def call_wrong(
        self, found: InspectedImage, calibration: Judging, rate: float, path: Path, image: Image.Image, note: str = ""
    ) -> FeedbackRecord:
        """Appends that the verdict on an image at a false-alarm rate is wrong, and returns the record.

        Raises:
            OSError: if it can't be written.
        """
        name, digest = self._converted.get(_key(image)) or (path.name, file_digest(path))
        verdict = "defective" if found.score > calibration.image_threshold(rate, found.category) else "good"
        record = FeedbackRecord(
            name=name,
            digest=digest,
            verdict="unknown" if found.is_unknown else verdict,
            correct_verdict="defective" if verdict == "good" and not found.is_unknown else "good",
            score=found.score,
            p_value=found.p_value,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            note=note.strip(),
        )
        append_feedback(self.path, record)
        return record


def _key(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
