"""What the web app shows of many images: rows, thumbnails, and files to download."""

import csv
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..data import Sample
from ..imaging.reading import ImageError
from ..imaging.streams import read_batches
from ..pipeline_diffad import DiffADPipeline
from ..runtime.detector import Detector
from ..system.text import printable, safe_cell
from .inspected_image import DEFECTIVE, GOOD, NEUTRAL, banner, overlaid, shrunk

BATCH_SIZE = 8
GALLERY_SIZE, THUMBNAIL_SIDE = 24, 320


@dataclass(frozen=True)
class BatchRow:
    """Result of one file: either an error, or score, p-value and label (good, defective or unknown)."""

    path: str
    score: float | None = None
    p_value: float | None = None
    label: str | None = None
    error: str | None = None


def inspect_files(
    pipe: DiffADPipeline | Detector,
    samples: Sequence[Sample],
    rate: float,
    overlays: Path,
    category: str | None = None,
    turn: AbstractContextManager = nullcontext(),  # noqa: B008
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[BatchRow], list[tuple[np.ndarray, str]]]:
    """Scores many images, a few in memory at a time.

    Args:
        overlays: zip archive to write, with `<name>.overlay.png` of every image at its own size.
        category: of all images, for a model trained on several categories.
        turn: held while the pipeline works, and let go between batches.
        on_progress: called as `on_progress(done, total)`.

    Returns:
        Rows, highest score first and unreadable files last, and the highest-scoring overlays as thumbnails with captions.
    """
    by_name = {sample.name: sample for sample in samples}
    rows, gallery, done = [], [], 0
    with zipfile.ZipFile(overlays, "w") as archive:
        read, pixels = (lambda name: by_name[name].read()), (lambda name: by_name[name].pixels())
        for batch in read_batches(list(by_name), read, BATCH_SIZE, pixels):
            rows += [BatchRow(name, error=str(image)) for name, image in batch if isinstance(image, ImageError)]
            readable = [(name, image) for name, image in batch if not isinstance(image, ImageError)]
            if readable:
                with turn:
                    output = pipe([image for _, image in readable], categories=category, false_alarm_rate=rate)
                for i, (name, image) in enumerate(readable):
                    is_unknown = output.categories is not None and output.categories[i] is None
                    label = "unknown" if is_unknown else "defective" if output.is_defective[i] else "good"
                    row = BatchRow(name, float(output.image_scores[i]), float(output.p_values[i]), label)
                    found = (output.anomaly_maps[i], output.pixel_thresholds[i], output.masks[i])
                    pixels = overlaid(np.asarray(image), *found)
                    picture = Image.fromarray(pixels)
                    with archive.open(f"{name}.overlay.png", "w") as file:
                        picture.save(file, format="PNG")
                    rows.append(row)
                    gallery.append((row, shrunk(picture, THUMBNAIL_SIDE)))
            gallery = sorted(gallery, key=lambda entry: -entry[0].score)[:GALLERY_SIZE]
            done += len(batch)
            on_progress(done, len(samples))
    rows.sort(key=lambda row: (row.score is None, -(row.score or 0)))
    return rows, [(np.asarray(picture), f"{row.score:.2f} {_short(row.path)}") for row, picture in gallery]


def summary(rows: Sequence[BatchRow], rate: float) -> str:
    """Banner that counts the results and says what could not be read."""
    counts = Counter(row.label for row in rows)
    lines = [f"{counts['good']} good, at {100 * rate:.3g} % false alarms."]
    if counts["unknown"]:
        lines.append(f"{counts['unknown']} of a product that the model has never seen.")
    if counts[None]:
        lines.append(f"{counts[None]} could not be read, see the end of the table.")
    headline = f"{counts['defective']} of {len(rows)} defective"
    return banner(headline, *lines, colour=DEFECTIVE if counts["defective"] else GOOD if counts["good"] else NEUTRAL)


TABLE_HEADERS = ("File", "Verdict", "Score", "p-value", "Error")


def table(rows: Sequence[BatchRow]) -> list[list[str]]:
    """Rows as they are shown, under `TABLE_HEADERS`."""
    return [
        [row.path, "unreadable", "", "", row.error]
        if row.score is None
        else [row.path, row.label, f"{row.score:.2f}", f"{row.p_value:.3g}", ""]
        for row in rows
    ]


def write_csv(rows: Sequence[BatchRow], path: Path) -> None:
    """One line per file, with the columns of [`BatchRow`]."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(BatchRow))
        for row in rows:
            writer.writerow(safe_cell(printable(cell)) if isinstance(cell, str) else cell for cell in astuple(row))


def _short(name: str) -> str:
    """A file's name and its folder's, which tell most files of an archive apart."""
    return "/".join(PurePosixPath(name).parts[-2:])
