"""What the process that computes does: loads a model, then answers groups of requests until the server is gone."""

import base64
import dataclasses
import io
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..imaging.decoding import ImageError, check_pixels, opened, pixel_count
from ..imaging.drawing import overlay
from ..imaging.reading import read_image
from ..imaging.streams import read_batches
from ..runtime.detector import Detector
from ..runtime.rows import rows_of
from ..system.text import one_line
from .messages import Job, Loaded, LoadingFailed, ModelInfo, Result, SentImage
from .refusal import Refusal
from .settings import ServeSettings

if TYPE_CHECKING:  # an exported model is served without torch
    from ..pipeline_diffad import DiffADPipeline

Load = Callable[[str], object]  # path of a model to a pipeline or Detector; runs in the process that computes
TIMED_CALLS = 2
WORTH_IT = 0.95  # of the time of an image in a batch; each batch is also a message to another process
NO_REPAIR_EXPORTED = "an exported model marks defects and does not repair them; serve the trained model for that"


def compute(connection: Connection, load: Load, path: str, settings: ServeSettings) -> None:
    """Sends [`Loaded`] or [`LoadingFailed`], then for every sequence of [`Job`] the list of their results.

    The jobs of one sequence are of the same kind and category. Ends when the server is gone, which else kills it.
    """
    # The server decides when to end: a signal to the whole group, such as Ctrl+C, must not cut off what it still answers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        model = load(path)
        info = describe(model, settings)
        settings = dataclasses.replace(settings, batch_size=fastest_batch_size(model, settings))
    except Exception as error:
        connection.send(LoadingFailed(one_line(error)))
        return
    connection.send(Loaded(info, settings.batch_size))
    while True:
        try:
            jobs = connection.recv()
        except EOFError:
            return
        connection.send(answer(model, jobs, settings))


def describe(model: "DiffADPipeline | Detector", settings: ServeSettings) -> ModelInfo:
    """Raises ValueError if the model is not calibrated, or can't give the false-alarm rate."""
    calibration = model.calibration
    rates = calibration.supported_rates(settings.false_alarm_rate)
    if isinstance(model, Detector):
        no_repair = NO_REPAIR_EXPORTED
    else:
        model.set_progress_bar_config(disable=True)
        no_repair = None if model.residual_gaussian is not None else "this model's diffusion model is not trained yet"
    return ModelInfo(
        digest=model.digest,
        category_names=None if model.category_names is None else tuple(model.category_names),
        no_repair=no_repair,
        calibration_scores=tuple(tuple(calibration.calibration_scores_of(category).tolist()) for category in rates),
        single_scores=tuple(None if s is None else tuple(s.tolist()) for s in map(calibration.single_scores_of, rates)),
        false_alarm_rates=tuple(rates.values()),
        references=tuple(map(calibration.reference_parts, rates)),
    )


def fastest_batch_size(model: "DiffADPipeline | Detector", settings: ServeSettings) -> int:
    """The size at most `settings.batch_size`, of that and one, in which the model scores an image in less time.

    Some runtimes are faster with single images, whose activations a CPU's cache holds. The grey images that are scored to find
    out also warm the model up, so that no request waits for what runtimes prepare at first use.
    """
    grey = Image.new("RGB", (256, 256), (128, 128, 128))
    category = None if model.category_names is None else model.category_names[0]

    def seconds_per_image(count: int) -> float:
        start = time.perf_counter()
        model([grey] * count, count, category)
        return (time.perf_counter() - start) / count

    largest = settings.batch_size
    # Without the first call, in which the runtime prepares
    seconds = {size: min([seconds_per_image(size) for _ in range(1 + TIMED_CALLS)][1:]) for size in {1, largest}}
    return 1 if seconds[1] < WORTH_IT * seconds[largest] else largest


def answer(model: "DiffADPipeline | Detector", jobs: Sequence[Job], settings: ServeSettings) -> list[Result]:
    """Results in the order of the jobs; whatever goes wrong with one changes no other."""
    try:
        if jobs[0].repair:
            return [repaired(model, job, settings) for job in jobs]
        return judged(model, jobs, settings)
    except Refusal as refusal:
        return [refusal] * len(jobs)
    except Exception as error:
        if len(jobs) > 1:
            return [answer(model, [job], settings)[0] for job in jobs]
        return [Refusal(500, f"the model failed on {jobs[0].images[0].name}: {one_line(error)}")]


def judged(model: "DiffADPipeline | Detector", jobs: Sequence[Job], settings: ServeSettings) -> list[Result]:
    """Rows as `diffad predict` writes them, with the image's `name` and `digest` in place of its path, and its `features`."""
    check_category(model, jobs[0].category)
    sent_images = [(job, image) for job in jobs for image in job.images]
    rows: dict[int, dict | ImageError] = {}
    for batch in decoded([sent for _, sent in sent_images], settings):
        rows |= {index: image for index, image in batch if isinstance(image, ImageError)}
        readable = {index: image for index, image in batch if not isinstance(image, ImageError)}
        if not readable:
            continue
        found = list(readable.values())
        output = model(found, len(readable), jobs[0].category, settings.false_alarm_rate, return_features=True)
        table = rows_of([sent_images[index][1].name for index in readable], output)
        for i, (index, image) in enumerate(readable.items()):
            job, sent = sent_images[index]
            row = {"name": table[i].pop("path"), "digest": sent.digest, **table[i]}
            row["features"] = None if output.pooled_features is None else output.pooled_features[i]
            if job.mask:
                row["mask_png"] = as_png(output.masks[i].astype(np.uint8) * 255)
            if job.overlay:
                shown = overlay(np.asarray(image), output.anomaly_maps[i], output.pixel_thresholds[i])
                row["overlay_png"] = as_png(shown)
            rows[index] = row
    of_all = iter([rows[index] for index in range(len(sent_images))])
    return [_of_job(list(islice(of_all, len(job.images)))) for job in jobs]


def repaired(model: "DiffADPipeline | Detector", job: Job, settings: ServeSettings) -> Result:
    """Rows with the repaired image, the share of its pixels that differ from the input, and whether to rely on it."""
    check_category(model, job.category)
    rows = []
    for batch in decoded(job.images, settings):
        for index, image in batch:
            if isinstance(image, ImageError):
                return Refusal(422, str(image))
            sent = job.images[index]
            output = model.reconstruct(image, categories=job.category, false_alarm_rate=settings.false_alarm_rate)
            changed = float((output.difference_maps[0] > 0).mean())
            picture = as_png(np.asarray(output.images[0]))
            row = {"name": sent.name, "digest": sent.digest, "changed_share": changed, "repaired_png": picture}
            rows.append({**row, "confident": bool(output.confident[0])})
    return rows


def decoded(images: Sequence[SentImage], settings: ServeSettings) -> Iterator[list[tuple[int, Image.Image | ImageError]]]:
    """Batches of indices with RGB images or their errors, bounded as [`diffad.imaging.streams.read_batches`] says."""

    def read(index: str) -> Image.Image:
        sent = images[int(index)]
        with opened(io.BytesIO(sent.data), sent.name) as image:
            check_pixels(image.size, sent.name, settings.max_pixels)
        return read_image(io.BytesIO(sent.data), sent.name)

    def pixels(index: str) -> int:
        return pixel_count(io.BytesIO(images[int(index)].data))

    for batch in read_batches([str(index) for index in range(len(images))], read, settings.batch_size, pixels):
        yield [(int(index), image) for index, image in batch]


def check_category(model: "DiffADPipeline | Detector", category: str | None) -> None:
    """Raises a refusal if the model does not know a category."""
    try:
        model.category_indices(category, 1)
    except ValueError as error:
        raise Refusal(422, one_line(error)) from None


def as_png(pixels: np.ndarray) -> str:
    """An image `(H, W[, 3])` uint8 as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _of_job(rows: list[dict | ImageError]) -> Result:
    errors = [row for row in rows if isinstance(row, ImageError)]
    return Refusal(422, str(errors[0])) if errors else rows
