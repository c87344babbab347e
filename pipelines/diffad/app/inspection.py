"""What the web app shows of images, apart from its layout: verdict, pictures at a threshold, repair, and batches."""

import csv
import html
import lzma
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..data import Sample
from ..imaging.drawing import filmstrip, heat_map, marked
from ..imaging.reading import IMAGE_SUFFIXES, ImageError, read_image
from ..imaging.trajectory import trajectory_row
from ..pipeline_diffad import DiffADPipeline
from ..scoring.calibration import Calibration

DISPLAY_SIDE = 1600  # pixels; more than a browser window shows
BATCH_SIZE = 8
MAX_UNPACKED_BYTES = 2**30  # of an archive's member: a few megabytes can unpack to a full disk
GALLERY_SIZE, THUMBNAIL_SIDE = 24, 320
MASK_COLOUR = (0, 255, 255)
DEFECTIVE, GOOD, NEUTRAL = "#b91c1c", "#15803d", "#52525b"


@dataclass(frozen=True)
class Inspection:
    """One scored image, on which any threshold can be laid without scoring it again.

    Args:
        image: `(H, W, 3)` uint8, no side longer than `DISPLAY_SIDE`.
        anomaly_map: `(H, W)` float32.
        score, p_value: of the image at its own size.
        category: index of its category, for a model trained on several.
    """

    image: np.ndarray
    anomaly_map: np.ndarray
    score: float
    p_value: float
    category: int = 0


def read_upload(path: str | Path) -> Image.Image:
    """An uploaded file as 8-bit RGB; errors call it by its name alone and not by where the server put it."""
    path = Path(path)
    try:
        return read_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from error


def inspect_image(pipe: DiffADPipeline, image: Image.Image, rate: float, category: str | None = None) -> Inspection:
    """Scores one image. The false-alarm rate changes nothing in the result, but has to be one that the pipeline supports."""
    shown = shrunk(image, DISPLAY_SIDE)
    output = pipe(image, categories=category, false_alarm_rate=rate, map_size=(shown.height, shown.width))
    category = 0 if output.categories is None else pipe.category_names.index(output.categories[0])
    score, p_value = float(output.image_scores[0]), float(output.p_values[0])
    return Inspection(np.asarray(shown), output.anomaly_maps[0], score, p_value, category)


def overlaid(image: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """The image `(H, W, 3)` uint8 under its heat map, outlined by a line that is still seen when it is shown small."""
    return marked(image, anomaly_map, threshold, MASK_COLOUR, width=max(1, round(max(image.shape) / 400)))


def pictures(inspection: Inspection, calibration: Calibration, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Overlay and heat map at the pixel threshold of a false-alarm rate, `(H, W, 3)` uint8 each."""
    threshold = calibration.pixel_threshold(rate, inspection.category)
    picture = overlaid(inspection.image, inspection.anomaly_map, threshold)
    return picture, heat_map(inspection.anomaly_map, threshold)


def verdict(inspection: Inspection, calibration: Calibration, rate: float) -> str:
    """HTML with the verdict at a false-alarm rate, and what score and p-value mean."""
    threshold = calibration.image_threshold(rate, inspection.category)
    defective = inspection.score > threshold
    return banner(
        "✗ Defective" if defective else "✓ No defect found",
        f"Score {inspection.score:.2f}, threshold {threshold:.2f}: at most {100 * rate:.3g} % of good parts score above it.",
        p_value_in_words(inspection.p_value, calibration.images_per_category[inspection.category]),
        colour=DEFECTIVE if defective else GOOD,
    )


def p_value_in_words(p_value: float, num_calibration_images: int) -> str:
    """What a conformal p-value (1 + k) / (n + 1) says about the n good parts behind it."""
    at_least_as_high = round(p_value * (num_calibration_images + 1)) - 1
    if at_least_as_high == 0:
        counted = f"None of the {num_calibration_images} good parts measured for calibration scored"
    else:
        counted = f"{at_least_as_high} of the {num_calibration_images} good parts measured for calibration scored"
    return f"{counted} this high or higher (p-value {p_value:.3g})."


def banner(headline: str, *lines: str, colour: str = NEUTRAL) -> str:
    """A coloured box of HTML; all text is escaped."""
    white = "color: white !important"  # the page's own style colours every element
    body = "".join(f'<div style="{white}; margin-top: 4px">{html.escape(line)}</div>' for line in lines)
    return (
        f'<div role="status" style="background: {colour}; border-radius: 8px; padding: 14px 18px">'
        f'<div style="{white}; font-size: 1.6em; font-weight: 600">{html.escape(headline)}</div>{body}</div>'
    )


def repair(
    pipe: DiffADPipeline, image: Image.Image, rate: float, category: str | None = None
) -> tuple[tuple[Image.Image, Image.Image], Image.Image] | None:
    """The image before and after repair, at display size, and the filmstrip of the way from one to the other.

    None if there was nothing to repair at this false-alarm rate.
    """
    output = pipe.reconstruct(image, categories=category, false_alarm_rate=rate, intermediate_steps="all")
    if not output.difference_maps[0].any():
        return None
    before, after = (shrunk(picture, DISPLAY_SIDE) for picture in (image, output.images[0]))
    return (before, after), filmstrip(*trajectory_row(before, output.intermediates[0], after))


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """A copy with no side longer than `side`, its aspect kept."""
    copy = image.copy()
    copy.thumbnail((side, side))
    return copy


@dataclass(frozen=True)
class Row:
    """Result of one file: either an error, or score, p-value and label (good or defective)."""

    path: str
    score: float | None = None
    p_value: float | None = None
    label: str | None = None
    error: str | None = None


def uploaded_samples(paths: Sequence[str | Path]) -> list[Sample]:
    """Images among uploaded files and in uploaded zip archives, with distinct names, read on demand.

    A zip's other members and hidden files are passed over; any other file counts as an image, whatever its name.

    Raises:
        ImageError: if an archive can't be opened.
    """
    samples, used = [], Counter()
    for path in map(Path, paths):
        used[path.name] += 1
        name = path.name if used[path.name] == 1 else f"{path.stem} ({used[path.name]}){path.suffix}"
        if path.suffix.lower() == ".zip":
            samples += [
                Sample(f"{name}/{PurePosixPath(member.filename)}", partial(_read_member, path, member))
                for member in _image_members(path)
            ]
        else:
            samples.append(Sample(name, partial(read_upload, path)))
    return samples


def inspect_files(
    pipe: DiffADPipeline,
    samples: Sequence[Sample],
    rate: float,
    overlays: Path,
    category: str | None = None,
    turn: AbstractContextManager = nullcontext(),  # noqa: B008
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Row], list[tuple[np.ndarray, str]]]:
    """Scores many images, a few in memory at a time.

    Args:
        overlays: zip archive to write, with `<name>.overlay.png` of every image at its own size.
        category: of all images, for a model trained on several categories.
        turn: held while the pipeline works, and let go between batches.
        on_progress: called as `on_progress(done, total)`.

    Returns:
        Rows, highest score first and unreadable files last, and the highest-scoring overlays as thumbnails with captions.
    """
    rows, gallery = [], []
    with zipfile.ZipFile(overlays, "w") as archive:
        for start in range(0, len(samples), BATCH_SIZE):
            images, names = [], []
            for sample in samples[start : start + BATCH_SIZE]:
                try:
                    images.append(sample.read())
                    names.append(sample.name)
                except ImageError as error:
                    rows.append(Row(sample.name, error=str(error)))
            if images:
                with turn:
                    output = pipe(images, categories=category, false_alarm_rate=rate)
                for i, name in enumerate(names):
                    score = float(output.image_scores[i])
                    row = Row(name, score, float(output.p_values[i]), "defective" if output.is_defective[i] else "good")
                    picture = Image.fromarray(
                        overlaid(np.asarray(images[i]), output.anomaly_maps[i], output.pixel_thresholds[i])
                    )
                    with archive.open(f"{name}.overlay.png", "w") as file:
                        picture.save(file, format="PNG")
                    rows.append(row)
                    gallery.append((row, shrunk(picture, THUMBNAIL_SIDE)))
            gallery = sorted(gallery, key=lambda entry: -entry[0].score)[:GALLERY_SIZE]
            on_progress(min(start + BATCH_SIZE, len(samples)), len(samples))
    rows.sort(key=lambda row: (row.score is None, -(row.score or 0)))
    return rows, [(np.asarray(picture), f"{row.score:.2f} {_short(row.path)}") for row, picture in gallery]


def summary(rows: Sequence[Row], rate: float) -> str:
    """Banner that counts the results and says what could not be read."""
    counts = Counter(row.label for row in rows)
    lines = [f"{counts['good']} good, at {100 * rate:.3g} % false alarms."]
    if counts[None]:
        lines.append(f"{counts[None]} could not be read, see the end of the table.")
    headline = f"{counts['defective']} of {len(rows)} defective"
    return banner(headline, *lines, colour=DEFECTIVE if counts["defective"] else GOOD if counts["good"] else NEUTRAL)


TABLE_HEADERS = ("File", "Verdict", "Score", "p-value", "Error")


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Rows as they are shown, under `TABLE_HEADERS`."""
    return [
        [row.path, "unreadable", "", "", row.error]
        if row.score is None
        else [row.path, row.label, f"{row.score:.2f}", f"{row.p_value:.3g}", ""]
        for row in rows
    ]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per file, with the columns of `Row`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Row))
        writer.writerows(astuple(row) for row in rows)


def _short(name: str) -> str:
    """A file's name and its folder's, which tell most files of an archive apart."""
    return "/".join(PurePosixPath(name).parts[-2:])


def _image_members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ImageError(f"{path.name}: not a readable zip archive; pack it anew") from error
    images = [member for member in members if not member.is_dir() and _is_image(PurePosixPath(member.filename))]
    return sorted(images, key=lambda member: member.filename)


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _read_member(path: Path, member: zipfile.ZipInfo) -> Image.Image:
    name = f"{path.name}/{PurePosixPath(member.filename)}"
    if member.file_size > MAX_UNPACKED_BYTES:
        raise ImageError(f"{name}: larger than {MAX_UNPACKED_BYTES // 2**20} MiB when unpacked")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                extracted = archive.extract(member, folder)
        except (OSError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise ImageError(f"{name}: can't be unpacked ({error}); pack it anew without a password") from error
        try:
            return read_image(extracted)
        except ImageError as error:
            raise ImageError(str(error).replace(extracted, name)) from error
