"""The model behind an inspection: judges one part at a time, and tells a bad image from a model that is dead."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from PIL import Image

from ..imaging.reading import page_count
from ..runtime.rows import rows_of
from ..system.text import one_line, printable
from .sources.part import Part

PROBE = Image.new("RGB", (64, 64), (128, 128, 128))


class ModelError(Exception):
    """The model judges nothing at present."""


class Judge:
    """Turns parts into rows. A model that fails is loaded anew before it is asked again.

    Args:
        load: loads the model, a [`DiffADPipeline`] or a [`Detector`].
        category, false_alarm_rate: of the model's call.
    """

    def __init__(self, load: Callable[[], Any], category: str | None = None, false_alarm_rate: float | None = None):
        self._load, self.category, self.false_alarm_rate = load, category, false_alarm_rate
        self.pipe = load()
        self.model = self.pipe.digest

    def row(self, part: Part) -> dict:
        """The row of a part's verdict, or of why it has none; with a verdict also its pooled `features`, None if not known.

        An image that the model fails on twice is the image's fault if the model judges a grey one right after.

        Raises:
            ModelError: if the model fails on any image; the part is to be judged again.
        """
        name = printable(part.key.name)
        if not isinstance(part.image, Image.Image):
            return {"path": name, "error": printable(str(part.image))}
        with suppress(Exception):  # of any library below; the second attempt says what
            return self._judged(name, part.image)
        try:
            self._load_anew()
            try:
                return self._judged(name, part.image)
            except Exception as error:
                reason = _text(error)
            self._judged("a grey image", PROBE)
        except Exception as error:
            raise ModelError(_text(error)) from error
        return {"path": name, "error": f"{name}: the model fails on this image ({reason})"}

    def _load_anew(self) -> None:
        self.pipe = self._load()
        if self.pipe.digest != self.model:
            raise ValueError("another model lies in its place now; start the inspection anew to use it")

    def _judged(self, name: str, image: Image.Image) -> dict:
        output = self.pipe([image], 1, self.category, self.false_alarm_rate, return_features=True)
        (row,) = rows_of([name], output)
        if not math.isfinite(row["score"]):
            raise ValueError(f"the score is {row['score']}")
        features = None if output.pooled_features is None else output.pooled_features[0]
        return row | {"pages": page_count(image), "features": features}


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
