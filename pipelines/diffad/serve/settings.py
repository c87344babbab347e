"""What can be chosen of a server."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeSettings:
    """Limits and behaviour of a server.

    Args:
        false_alarm_rate: share of good parts that may be called defective; None as in scoring.
        batch_size: images that are scored together at most. A model that scores them faster one by one does so.
        capacity: images that may be in the server at once, waiting or being scored; more are answered with 429.
        max_bytes: of a request's body.
        max_pixels: of an image.
        body_seconds: that a client may take to send a body.
        batch_seconds: that a batch may take; after that the process that scores it is restarted.
        min_agreement: share in [0, 1] of recent images on which a new model's label must be the present one's.
        level: probability that unchanged production ever raises an alarm of the monitor.
        monitor_state: JSON file that keeps what the monitor has seen; None keeps it in memory.
        feedback: file that verdicts marked wrong are appended to; None takes none.
    """

    false_alarm_rate: float | None = None
    batch_size: int = 8
    capacity: int = 32
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    body_seconds: float = 30.0
    batch_seconds: float = 300.0
    min_agreement: float = 0.95
    level: float = 0.05
    monitor_state: Path | None = None
    feedback: Path | None = None
