"""Predictions for a folder of any number of images: one row each, in memory that does not grow, resumed where it stopped."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .. import __version__
from ..deprecation import accepts_former_names
from ..imaging.decoding import ImageError
from ..imaging.drawing import overlay
from ..imaging.reading import page_count
from ..imaging.streams import read_batches
from ..runtime.detector import Detector
from ..runtime.rows import rows_of
from ..system.text import printable
from .folders import picture_path
from .images import is_stored, list_images, reader_of
from .resume import Journal, check_is_result, only_writer, write_record
from .table import check_rows, check_table_path, read_rows, write_table

if TYPE_CHECKING:  # an exported model needs none of what a pipeline does
    from ..pipeline_diffad import DiffADPipeline

LISTED_ERRORS = 10
# Names and RGB images of a batch to its rows.
Score = Callable[[Sequence[str], Sequence[Image.Image]], list[dict]]
# Names of images to their rows, in their order and in lists of any length.
MakeRows = Callable[[Sequence[str]], Iterator[list[dict]]]


@dataclass(frozen=True)
class PredictionSettings:
    """What decides the content of a run's results.

    Args:
        false_alarm_rate: share of good parts that may be called defective; None as in scoring.
        maps: folder for anomaly maps as 32-bit floating-point TIFF, at the images' sizes.
        overlays: folder for the images with the heat map laid over, as PNG.
        masks: folder for the defective pixels, 255 on black, as PNG.
        category: category of all images, for a model of several; None recognises each image's.
    """

    false_alarm_rate: float | None = None
    maps: Path | None = None
    overlays: Path | None = None
    masks: Path | None = None
    category: str | None = None

    @property
    def picture_folders(self) -> list[Path]:
        return [folder for folder in (self.maps, self.overlays, self.masks) if folder is not None]

    def resolved(self) -> "PredictionSettings":
        """The same settings for a process that works elsewhere."""
        folders = {name: getattr(self, name) for name in ("maps", "overlays", "masks")}
        return dataclasses.replace(self, **{name: folder and folder.resolve() for name, folder in folders.items()})


PredictionSettings.__init__ = accepts_former_names(class_label="category")(PredictionSettings.__init__)


@dataclass
class PredictionSummary:
    """Counts of a whole run, earlier parts included.

    Args:
        images, defective, unknown, unreadable: numbers of images.
        first_errors: of the first few unreadable images.
        was_complete: the table was there already, and nothing was scored.
    """

    images: int = 0
    defective: int = 0
    unknown: int = 0
    unreadable: int = 0
    first_errors: list[str] = field(default_factory=list)
    was_complete: bool = False

    def counted(self, rows: Iterable[dict]) -> Iterator[dict]:
        """Passes rows on and counts them."""
        for row in rows:
            self.images += 1
            self.defective += row.get("label") == "defective"
            self.unknown += row.get("label") == "unknown"
            if row.get("error"):
                self.unreadable += 1
                if self.unreadable <= LISTED_ERRORS:
                    self.first_errors.append(row["error"])
            yield row


def rows_in_batches(
    read: Callable[[str], Image.Image],
    score: Score,
    batch_size: int,
    pixels: Callable[[str], int] | None,
    names: Sequence[str],
) -> Iterator[list[dict]]:
    """Reads images and scores those that can be read; the others get a row with the error.

    Args:
        read: name to RGB image, or ImageError.
        batch_size, pixels: of [`diffad.imaging.streams.read_batches`].
    """
    for batch in read_batches(names, read, batch_size, pixels):
        yield _score_readable(batch, score)


def rows_here(
    pipe: "DiffADPipeline | Detector",
    folder: str,
    settings: PredictionSettings,
    batch_size: int,
    base: Path = Path(),
) -> MakeRows:
    """Reads images below a folder and scores them in this process; see [`predict_folder`].

    Args:
        base: of a relative folder, for a process that works elsewhere.
    """
    reader = reader_of(folder, base)

    def score(names: Sequence[str], images: Sequence[Image.Image]) -> list[dict]:
        result = pipe(images, batch_size, settings.category, settings.false_alarm_rate)
        for i, name in enumerate(names):
            threshold = result.pixel_thresholds[i]
            write_pictures(settings, name, images[i], result.anomaly_maps[i], result.masks[i], threshold)
        return [row | {"pages": page_count(image)} for row, image in zip(rows_of(names, result), images, strict=True)]

    return partial(rows_in_batches, reader.read, score, batch_size, reader.pixels)


def predict_folder(
    pipe: "DiffADPipeline | Detector",
    folder: str | Path,
    output: Path,
    settings: PredictionSettings = PredictionSettings(),
    batch_size: int = 8,
    engine: Callable[..., MakeRows] = rows_here,
) -> PredictionSummary:
    """Scores all images below a folder, or one image file, and writes a table with the columns of [`diffad.jobs.table.SCHEMA`].

    Finished rows lie in `<output>.journal` until the table is complete. A run that was killed goes on from there, if model,
    settings and images are the same. A finished table of the same run, which `<output>.run.json` tells, is left as it is.

    Args:
        folder: or the address of one in an object store, such as `s3://bucket/folder`.
        output: table to write; `.csv`, `.jsonl` or `.parquet`.
        batch_size: images per forward pass; scores depend on it by rounding errors only.
        engine: makes the rows, as [`rows_here`] does in this process; it decides nothing of their content.

    Raises:
        DataError: if there are no images, or folders of pictures would collide with them.
        OSError: if an object store can't be reached.
        ValueError: if the output can't be written, it or the journal belongs to another run, or the pipeline can't give the
            false-alarm rate or does not know the category.
    """
    check_table_path(output)
    categories = pipe.category_indices(settings.category, 1)
    rates = pipe.calibration.supported_rates(settings.false_alarm_rate, categories)
    if not isinstance(pipe, Detector):
        pipe.set_progress_bar_config(disable=True)
    images = list_images(folder, settings.picture_folders)
    run = {
        "version": __version__,
        "folder": str(folder) if is_stored(folder) else str(Path(folder).resolve()),
        "images": images.digest,
        "model": pipe.digest,
        **{key: _as_text(value) for key, value in dataclasses.asdict(settings).items()},
        "thresholds": [_thresholds(pipe, category, rate) for category, rate in rates.items()],
    }
    return record_rows(images.names, engine(pipe, images.folder, settings, batch_size), output, run)


def record_rows(names: Sequence[str], make_rows: MakeRows, output: Path, run: dict) -> PredictionSummary:
    """Records the rows of images, from where the journal ends to the finished table; one of the same run stays.

    Args:
        names: of all images of the run, the finished ones included.
        make_rows: is called with the names of the others.
        run: everything that rows depend on; see [`diffad.jobs.resume.Journal`].

    Raises:
        ValueError: if the output or the journal belongs to another run or is damaged, or another process is writing either.
    """
    journal_path = output.with_name(f"{output.name}.journal")
    summary = PredictionSummary()
    with only_writer(output):
        if output.exists() and not journal_path.exists():
            check_is_result(output, run)
            summary.was_complete = True
            for _ in summary.counted(read_rows(output)):
                pass
            return summary
        with Journal(journal_path, run, partial(check_rows, paths=[printable(name) for name in names])) as journal:
            with tqdm(
                total=len(names), initial=journal.length, desc="predicting", unit="image", mininterval=1, disable=None
            ) as progress:
                for rows in make_rows(names[journal.length :]):
                    journal.append(rows)
                    progress.update(len(rows))
            write_table(summary.counted(iter(journal)), output)
        write_record(output, run)
        journal_path.unlink()
    return summary


def write_pictures(
    settings: PredictionSettings,
    name: str,
    image: Image.Image,
    anomaly_map: np.ndarray,
    mask: np.ndarray,
    pixel_threshold: float,
) -> None:
    """Writes the pictures of one image that the settings ask for."""
    if settings.maps is not None:
        Image.fromarray(anomaly_map).save(picture_path(settings.maps, name, ".tiff"))
    if settings.overlays is not None:
        pixels = overlay(np.asarray(image), anomaly_map, pixel_threshold)
        Image.fromarray(pixels).save(picture_path(settings.overlays, name, ".png"))
    if settings.masks is not None:
        Image.fromarray(mask.astype(np.uint8) * 255).save(picture_path(settings.masks, name, ".png"))


def _score_readable(batch: list[tuple[str, Image.Image | ImageError]], score: Score) -> list[dict]:
    """Rows of a batch in its order; what could not be read gets a row with the error."""
    readable = [(name, image) for name, image in batch if not isinstance(image, ImageError)]
    rows = iter(score(*zip(*readable)) if readable else ())
    return [
        {"path": printable(name), "error": printable(str(image))} if isinstance(image, ImageError) else next(rows)
        for name, image in batch
    ]


def _as_text(setting: Path | float | str | None) -> str | None:
    """A setting as it decides the results: a folder is the one it means, not how it is written."""
    return None if setting is None else str(setting.resolve() if isinstance(setting, Path) else setting)


def _thresholds(pipe: "DiffADPipeline | Detector", category: int, false_alarm_rate: float) -> dict:
    return {
        "category": None if pipe.category_names is None else pipe.category_names[category],
        "false_alarm_rate": false_alarm_rate,
        "image_threshold": pipe.calibration.image_threshold(false_alarm_rate, category),
        "pixel_threshold": pipe.calibration.pixel_threshold(false_alarm_rate, category),
    }
