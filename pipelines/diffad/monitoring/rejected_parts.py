"""Which parts of production a monitor saw rejected, so that an operator's report that comes later finds its part."""

from dataclasses import dataclass, field

from .feedback_list import FeedbackList
from .saved_values import text, whole

MOST_PARTS = 20_000  # whose reports are waited for; a report on an earlier part is not counted, which raises no alarm


@dataclass
class RejectedParts:
    """Rejected parts as a monitor's state keeps them.

    Args:
        latest: place among the parts, name, and digest of the image file (None where it is not known), of the latest ones.
        found: places of parts that a report was found of, by the report's digest.
    """

    latest: list[tuple[int, str, str | None]] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)

    def add(self, place: int, name: str, digest: str | None) -> None:
        """Takes a rejected part."""
        self.latest.append((place, name, digest))
        if len(self.latest) > 2 * MOST_PARTS:
            self.latest = self.latest[-MOST_PARTS:]

    def places_of(self, feedback: FeedbackList) -> list[int]:
        """Places of the parts that are wrongly rejected by the operator's latest word.

        A part is known by the digest of its file; where that is not known, by its name.
        """
        by_digest = {digest: place for place, _, digest in self.latest if digest is not None}
        by_name = {name: place for place, name, digest in self.latest if digest is None}
        wrongly_rejected = feedback.wrongly_rejected
        for digest in wrongly_rejected:
            place = by_digest.get(digest, by_name.get(feedback.records[digest].name))
            if place is not None:
                self.found.setdefault(digest, place)
        return sorted({place for digest, place in self.found.items() if digest in wrongly_rejected})

    def to_dict(self) -> dict:
        """The parts in values that JSON can hold, which later changes leave alone."""
        return {"latest": list(self.latest), "found": dict(self.found)}

    @classmethod
    def restored(cls, saved: dict) -> "RejectedParts":
        """The parts that [`RejectedParts.to_dict`] gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: if they are damaged.
        """
        latest = [(whole(place), text(name), digest and text(digest)) for place, name, digest in saved["latest"]]
        return cls(latest, {digest: whole(place) for digest, place in saved["found"].items()})
