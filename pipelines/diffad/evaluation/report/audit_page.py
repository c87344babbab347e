"""The gallery of an audit: good images that are unlike the others, near duplicates, and what they are duplicates of."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...imaging.drawing import overlay
from ...system.text import printable
from .pictures import LONG_SIDE, data_uri
from .render import template


@dataclass(frozen=True)
class AuditCard:
    """One image of the gallery.

    Args:
        name: of the image.
        reason: why it is shown; what the buttons choose by.
        figures: its rank and score, as text.
        is_listed: whether the list says to leave it out.
        pictures: draws its pictures by their captions; called once.
    """

    name: str
    reason: str
    figures: str
    is_listed: bool
    pictures: Callable[[], Mapping[str, Image.Image]]


@dataclass(frozen=True)
class AuditPage:
    """What the page says: its title, facts by name, how to read it, and the images in their order."""

    title: str
    facts: Mapping[str, str]
    explanation: str
    cards: Sequence[AuditCard]


def write_audit_page(page: AuditPage, path: Path) -> None:
    """Writes the page to one HTML file that needs nothing else; pictures are drawn one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cards = [
        {
            "name": card.name,
            "reason": card.reason,
            "figures": card.figures,
            "is_listed": card.is_listed,
            "pictures": {name: data_uri(picture) for name, picture in card.pictures().items()},
        }
        for card in page.cards
    ]
    reasons = Counter(card.reason for card in page.cards)
    text = template("audit.html.j2").render(page=page, cards=cards, reasons=reasons)
    path.write_text(printable(text), encoding="utf-8")


def audit_pictures(
    image: Image.Image, distances: np.ndarray | None = None, threshold: float = 3.0, other: Image.Image | None = None
) -> dict[str, Image.Image]:
    """Pictures at most 256 pixels long: the image, where it is unlike the others, and the one that it is a duplicate of.

    Args:
        distances: `(height, width)`, as multiples of a good image's highest.
        threshold: at which they are half as bright as they can be.
    """
    pictures = {"image": _small(image)}
    if distances is not None:
        heat = Image.fromarray(distances.astype(np.float32)).resize(pictures["image"].size, Image.Resampling.BILINEAR)
        drawn = overlay(np.asarray(pictures["image"]), np.asarray(heat), threshold)
        pictures["unlike the others"] = Image.fromarray(drawn)
    if other is not None:
        pictures["near duplicate of"] = _small(other)
    return pictures


def _small(image: Image.Image) -> Image.Image:
    scale = min(1.0, LONG_SIDE / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
