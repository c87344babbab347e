"""JSON that a server takes and gives, as its OpenAPI page describes it."""

from pydantic import BaseModel, Field


class Model(BaseModel):
    """The model that an answer is of."""

    digest: str = Field(description="Tells the model; equal digests and thresholds give equal answers.")
    version: int = Field(description="Counts the models that this server has had, from 1 on.")


class Prediction(BaseModel):
    """Verdict on one image."""

    name: str
    digest: str = Field(description="SHA-256 of the image file.")
    score: float = Field(description="Higher is more anomalous; unbounded.")
    p_value: float = Field(description="Share of good parts expected to score at least as high.")
    label: str = Field(description="good, defective, or unknown: of a product that the model has never seen.")
    image_threshold: float = Field(description="Scores above it are called defective.")
    pixel_threshold: float = Field(description="Pixels of the anomaly map above it are defective.")
    false_alarm_rate: float = Field(description="Share of good parts that may be called defective.")
    defect_pixels: int
    defect_share: float = Field(description="Of the image's pixels, in [0, 1].")
    defects: int = Field(description="Connected regions.")
    boxes: list[tuple[int, int, int, int]] = Field(description="left, top, right, bottom in pixels; the largest region first.")
    category: str | None = Field(description="Of a model of several; null for one, and for an unknown product.")
    mask_png: str | None = Field(None, description="Defective pixels, 255 on black: PNG in base64, if asked for.")
    overlay_png: str | None = Field(None, description="The image under its heat map: PNG in base64, if asked for.")


class Predictions(BaseModel):
    """Answer of /predict, images in the order of the request."""

    model: Model
    images: list[Prediction]


class Repaired(BaseModel):
    """One image as it should have looked."""

    name: str
    digest: str = Field(description="SHA-256 of the image file.")
    changed_share: float = Field(description="Of pixels that differ from the input, in [0, 1].")
    confident: bool = Field(description="False where the part may well have looked otherwise.")
    repaired_png: str = Field(description="PNG in base64, of the input's size.")


class Repairs(BaseModel):
    """Answer of /repair, images in the order of the request."""

    model: Model
    images: list[Repaired]


class Feedback(BaseModel):
    """An operator's word on a verdict; `name`, `digest`, `score` and `p_value` as /predict gave them."""

    name: str = Field(max_length=1000)
    digest: str
    verdict: str = Field(description="That was given: good, defective or unknown.")
    correct_verdict: str = Field(description="good or defective.")
    score: float | None = Field(None, allow_inf_nan=False)
    p_value: float | None = Field(None, ge=0, le=1)
    note: str = Field("", max_length=2000)


class Stored(BaseModel):
    """Answer of /feedback, once the entry is on the disk."""

    time: str = Field(description="ISO 8601, UTC.")


class NewModel(BaseModel):
    """A model to serve."""

    path: str = Field(description="Folder of a trained or exported model on the server's machine.")
    force: bool = Field(False, description="Serve it whatever the comparison on recent images says.")


class Exchanged(BaseModel):
    """Answer of /model, once the new model serves."""

    model: Model
    compared: int = Field(description="Recent images that both models judged.")
    agreement: float | None = Field(description="Share of equal labels, in [0, 1]; null without images.")
    differing: list[dict] = Field(description="name, label, new_label, score and new_score of the others.")


class CategoryState(BaseModel):
    """What the monitor says of one category."""

    category: str | None
    parts: int
    rejected: int = Field(description="Above the threshold.")
    changed: bool = Field(description="Whether production has left the distribution of the calibration images.")
    alarms: dict[str, int] = Field(description="Number of parts at the first alarm of each test.")
    evidence: dict[str, float] = Field(description="e-value of each test.")
    limits: dict[str, float] = Field(description="e-values at which an alarm is raised; of embeddings 1 / level.")
    embeddings: list[tuple[float, float]] = Field(description="Latest p-values, and those at which an alarm is raised.")
    embeddings_not_tested: str | None = Field(description="Why embeddings are not tested; null if they are.")
    suggestions: list[str] = Field(description="What changed in the latest images when the alarm was raised.")


class Monitored(BaseModel):
    """Answer of /monitor."""

    model: Model
    categories: list[CategoryState] = Field(description="One for a model of one category.")


class Health(BaseModel):
    """Answer of /health."""

    status: str
    version: str = Field(description="Of diffad.")


class Ready(BaseModel):
    """Answer of /ready."""

    model: Model


class Error(BaseModel):
    """Answer with any status from 400 on."""

    error: str = Field(description="What is wrong, and the remedy.")
    retryable: bool = Field(description="Whether the same request may succeed later, after Retry-After seconds if given.")
