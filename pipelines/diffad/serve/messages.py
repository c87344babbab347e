"""What the server and the process that computes tell each other."""

import hashlib
from dataclasses import dataclass, field

from ..scoring.reference_parts import ReferenceParts
from .refusal import Refusal


@dataclass(frozen=True)
class SentImage:
    """An image file as a client sent it.

    Args:
        name: how answers call it.
        data: content of the file.
    """

    name: str
    data: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Job:
    """One request.

    Args:
        images: at least one.
        category: of all images, for a model of several; None recognises each image's.
        mask, overlay: whether the answer carries these pictures.
        repair: the images are to be repaired, not judged.
    """

    images: tuple[SentImage, ...]
    category: str | None = None
    mask: bool = False
    overlay: bool = False
    repair: bool = False


# One row for each image, or why there is none. Rows of judged images also have `features`, which no client is sent.
Result = list[dict] | Refusal


@dataclass(frozen=True)
class ModelInfo:
    """What the server knows of a model.

    Args:
        digest: of the model; equal digests and calibration scores give equal answers.
        category_names: of a model of several; None for one.
        no_repair: why it can't repair; None if it can.
        calibration_scores: of each category, behind its threshold.
        false_alarm_rates: of each category.
        references: of each category what its calibration images look like, where that is known.
        single_scores: of each category, where its threshold counts groups of images, of one image drawn of each group.
    """

    digest: str
    category_names: tuple[str, ...] | None
    no_repair: str | None
    calibration_scores: tuple[tuple[float, ...], ...]
    false_alarm_rates: tuple[float, ...]
    references: tuple[ReferenceParts | None, ...] = field(default=(), compare=False, repr=False)
    single_scores: tuple[tuple[float, ...] | None, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Loaded:
    """The model is loaded and warm.

    Args:
        batch_size: images that are scored together if so many are waiting.
    """

    info: ModelInfo
    batch_size: int


@dataclass(frozen=True)
class LoadingFailed:
    """The model can't be served; one sentence says why."""

    error: str
