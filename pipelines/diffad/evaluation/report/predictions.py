"""The report of a prediction run, whose images have no known truth."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...imaging.reading import ImageError, read_image
from ...pipeline_diffad import DiffADPipeline
from ...runtime.detector import Detector
from ...system.text import printable
from .contents import Report, ReportRow
from .pictures import Pictures, draw_pictures


def report_from_predictions(
    pipe: DiffADPipeline | Detector,
    rows: Iterable[Mapping[str, Any]],
    folder: str | Path,
    false_alarm_rate: float | None = None,
    facts: Mapping[str, str] | None = None,
) -> Report:
    """A report of images that were scored before; only those that the gallery shows are read and scored again.

    Args:
        pipe: the pipeline that scored them. Its progress bar is turned off.
        rows: one for every scored image: `path` (absolute or relative to `folder`), `score`, `p_value` and `label` (`good`,
            `defective` or `unknown`), as in a table of predictions; rows with an `error` are only counted. For a model of
            several categories also the `category`, one for all rows.
        folder: of the images.
        false_alarm_rate: that they were scored with; None is the default of scoring.
        facts: further facts of the run for the page's head.

    Raises:
        ValueError: if there are no rows, or they are of several categories, whose scores do not compare.
    """
    folder, rows = Path(folder), list(rows)
    scored = [row for row in rows if not row.get("error")]
    unreadable = {"Unreadable": f"{len(rows) - len(scored):,} more"} if len(scored) < len(rows) else {}
    if not scored:
        raise ValueError(f"{folder}: no scored images to report on")
    categories = {row.get("category") or None for row in scored if row["label"] != "unknown"}
    if len(categories) > 1:
        raise ValueError(f"{folder}: images of {', '.join(sorted(map(str, categories)))}; report on each category apart")
    category = categories.pop() if categories else None
    index = 0 if category is None else pipe.category_indices(category, 1)[0]
    false_alarm_rate = pipe.calibration.supported_rate(false_alarm_rate, index)
    if isinstance(pipe, DiffADPipeline):
        pipe.set_progress_bar_config(disable=True)
    report_rows = [
        ReportRow(
            name=str(row["path"]),
            score=float(row["score"]),
            p_value=float(row["p_value"]),
            called_defective=row["label"] != "good",
            pictures=partial(_pictures, pipe, folder, row["path"], row["label"] != "good", category, false_alarm_rate),
            file=partial(_file_of, folder, row["path"]),
            is_unknown=row["label"] == "unknown",
        )
        for row in scored
    ]
    repair = {} if isinstance(pipe, DiffADPipeline) else {"Repair": "left out: an exported model only scores"}
    return Report(
        title=f"Inspection of {folder.resolve().name}",
        facts={"Images": f"{len(report_rows):,} in {folder}", **unreadable, **repair, **(facts or {})},
        rows=report_rows,
        false_alarm_rate=false_alarm_rate,
        image_threshold=pipe.calibration.image_threshold(false_alarm_rate, index),
        pixel_threshold=pipe.calibration.pixel_threshold(false_alarm_rate, index),
        calibration_scores=pipe.calibration.calibration_scores_of(index),
    )


def _pictures(
    pipe: DiffADPipeline | Detector,
    folder: Path,
    name: str,
    called_defective: bool,
    category: str | None,
    false_alarm_rate: float,
) -> Pictures:
    image = read_image(_file_of(folder, name))
    settings = {"categories": category, "false_alarm_rate": false_alarm_rate}
    output = pipe(image, **settings)
    can_repair = isinstance(pipe, DiffADPipeline)  # an exported model only scores
    repaired = pipe.reconstruct(image, **settings).images[0] if called_defective and can_repair else None
    return draw_pictures(image, output.anomaly_maps[0], output.pixel_thresholds[0], output.masks[0], repaired=repaired)


def _file_of(folder: Path, name: str) -> Path:
    """The file that a table calls by a name, in which bytes that are not text were replaced.

    Raises:
        ImageError: if several files have that name.
    """
    found = [folder / name]
    if not found[0].exists() and "\N{REPLACEMENT CHARACTER}" in name:
        found = [folder]
        for part in Path(name).parts:
            entries = (entry for parent in found if parent.is_dir() for entry in parent.iterdir())
            found = [entry for entry in entries if printable(entry.name) == part]
    if len(found) != 1:
        raise ImageError(f"{folder / name}: {len(found)} files are called so; rename them")
    return found[0]
