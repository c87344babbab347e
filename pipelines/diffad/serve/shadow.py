"""Recent images with their labels, on which a new model is compared before it serves."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .messages import Job, SentImage
from .refusal import Refusal
from .settings import ServeSettings
from .worker import Worker, WorkerError

MOST_IMAGES = 50
MOST_BYTES = 64 * 2**20  # of all of them together


@dataclass(frozen=True)
class RecentImage:
    """An image that was judged.

    Args:
        category: that its request named.
        judged_as: category that it was judged as.
        version: of the model that judged it.
    """

    image: SentImage
    category: str | None
    judged_as: str | None
    label: str
    score: float
    version: int


@dataclass(frozen=True)
class Comparison:
    """How a new model judges recent images.

    Args:
        compared: number of images.
        differing: `name`, `label`, `new_label`, `score` and `new_score` of those whose labels differ; scores of different
            models have different scales.
    """

    compared: int
    differing: list[dict]

    @property
    def agreement(self) -> float | None:
        """Share of equal labels; None without images."""
        return 1 - len(self.differing) / self.compared if self.compared else None

    def check(self, path: str, least: float) -> None:
        """Raises Refusal 409 if fewer labels agree than should, or there was nothing to compare."""
        if self.agreement is None:
            raise Refusal(409, f"{path}: no images have been judged yet that it could be compared on; force it, or try later")
        if self.agreement < least:
            named = ", ".join(f"{one['name']} ({one['label']}, now {one['new_label']})" for one in self.differing[:5])
            raise Refusal(
                409,
                f"{path}: agrees with the present model on {100 * self.agreement:.0f} % of {self.compared} recent images, less "
                f"than {100 * least:g} %: {named}; force it if that is meant",
            )


class RecentImages:
    """The latest images in bounded memory."""

    def __init__(self):
        self._images: deque[RecentImage] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._images)

    def add(self, images: Sequence[RecentImage]) -> None:
        for image in images:
            self._images.append(image)
            self._bytes += len(image.image.data)
            while len(self._images) > MOST_IMAGES or self._bytes > MOST_BYTES:
                self._bytes -= len(self._images.popleft().image.data)

    def of(self, version: int, category: str | None) -> list[SentImage]:
        """Those that a model judged as parts of a category, the oldest first."""
        return [one.image for one in self._images if (one.version, one.judged_as) == (version, category)]

    async def compare(self, worker: Worker, settings: ServeSettings, version: int) -> Comparison:
        """Labels of a new model beside those of the present one.

        Args:
            version: of the present model, whose labels count.

        Raises:
            Refusal: 422 if the process that computes with the new model ends.
        """
        compared = [one for one in self._images if one.version == version]
        differing = []
        for one in compared:
            try:
                (result,) = await worker.answer([Job((one.image,), one.category)], settings.batch_seconds)
            except WorkerError as error:
                raise Refusal(422, f"{error} on a recent image") from None
            row = {"label": str(result), "score": None} if isinstance(result, Refusal) else result[0]
            if row["label"] != one.label:
                differing.append(
                    {
                        "name": one.image.name,
                        "label": one.label,
                        "new_label": row["label"],
                        "score": one.score,
                        "new_score": row["score"],
                    }
                )
        return Comparison(len(compared), differing)
