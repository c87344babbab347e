"""Writes a report as one HTML file that needs nothing else."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from scipy.stats import binomtest
from tqdm.auto import tqdm

from ...scoring.conformal import check_supported
from ...system.file_digest import file_digest
from ...system.text import printable
from ..bootstrap import RESAMPLES, confidence_intervals
from ..counts import count_images
from ..sweep import sweep
from .contents import Outcome, Report, ReportRow
from .gallery import choose_rows
from .pictures import data_uri
from .plots import DEFECTIVE, GOOD, TEXT, curve_plot, score_histogram

PRO_LIMIT = 0.3  # false positive rate up to which AUPRO integrates
METRIC_NAMES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1, best threshold",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1, best threshold",
    "aupro_30": "AUPRO up to 30 % false positives",
    "aupro_05": "AUPRO up to 5 % false positives",
}


def check_report_path(path: Path) -> None:
    """Raises OSError unless a report can be written there. Nothing is made."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file for the report")
    if not folder.is_dir():
        raise NotADirectoryError(f"{path}: {folder} is a file, no folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PermissionError(f"{path}: may not be written")


def write_report(report: Report, path: str | Path, max_gallery_rows: int = 60) -> None:
    """Writes the report to an HTML file, replacing what is there; missing folders are made.

    Args:
        report: what to show.
        path: of the file.
        max_gallery_rows: images with pictures at most. Only they are drawn, one after the other.

    Raises:
        ValueError: if the report has no rows, rows with and without truth, metrics without truth, or too few calibration images
            to promise its false-alarm rate.
    """
    _check(report)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    has_truth = report.rows[0].is_defective is not None
    page = template("template.html.j2").render(
        report=report,
        has_truth=has_truth,
        resamples=RESAMPLES,
        called_defective=sum(row.called_defective for row in report.rows),
        rates=_rates(report.rows) if has_truth else {},
        metrics=_metrics(report) if report.metrics is not None else [],
        curves=_curves(report) if has_truth else [],
        histogram=Markup(_histogram(report, has_truth)),
        defects=_defects(report.rows) if has_truth else [],
        outcomes=_outcome_counts(report.rows),
        cards=_cards(choose_rows(report.rows, max_gallery_rows)),
    )
    path.write_text(printable(page), encoding="utf-8")


def template(name: str) -> Template:
    """A page's template of this folder, which escapes what it is given."""
    environment = Environment(
        loader=PackageLoader("diffad.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return environment.get_template(name)


def _check(report: Report) -> None:
    if not report.rows:
        raise ValueError(f"{report.title}: a report needs at least one image")
    known = {row.is_defective is not None for row in report.rows}
    if len(known) > 1:
        raise ValueError(f"{report.title}: some images have a truth and some have none; report on them apart")
    if report.metrics is not None and len({row.is_defective for row in report.rows}) < 2:
        raise ValueError(f"{report.title}: metrics need good and defective images")
    check_supported(len(report.calibration_scores), report.false_alarm_rate)


def _rates(rows: Sequence[ReportRow]) -> dict[str, dict[str, Any]]:
    """Detection and false-alarm rate with exact binomial 95 % intervals (Clopper and Pearson), where there are such images."""
    rates = {}
    for name, truth in (("detection", True), ("false alarms", False)):
        called = [row.called_defective for row in rows if row.is_defective is truth]
        if called:
            test = binomtest(sum(called), len(called))
            low, high = test.proportion_ci(0.95)
            rates[name] = {"count": sum(called), "total": len(called), "value": test.statistic, "low": low, "high": high}
    return rates


def _metrics(report: Report) -> list[dict[str, Any]]:
    """Name, value and 95 % confidence interval of every metric that has a name here."""
    scores, is_defective = _scores_and_truth(report)
    counts = count_images(scores, is_defective)
    intervals = {f"image_{name}": ends for name, ends in confidence_intervals(counts, is_defective).items()}
    if report.pixel_counts is not None:
        for name, ends in confidence_intervals(report.pixel_counts, is_defective).items():
            intervals[name if name.startswith("aupro") else f"pixel_{name}"] = ends
    rows = []
    for key, name in METRIC_NAMES.items():
        if key in report.metrics:
            low, high = intervals[key]
            rows.append({"name": name, "value": report.metrics[key], "low": low, "high": high})
    return rows


def _curves(report: Report) -> list[dict[str, Any]]:
    scores, is_defective = _scores_and_truth(report)
    if is_defective.all() or not is_defective.any():
        return []
    image = sweep(count_images(scores, is_defective))
    called = np.array([row.called_defective for row in report.rows])
    false_alarms, detection = called[~is_defective].mean(), called[is_defective].mean()
    precision = is_defective[called].mean() if called.any() else 1.0
    curves = [
        {
            "title": "ROC, images",
            "svg": curve_plot(image.fpr[0], image.recall[0], "false-alarm rate", "detection rate", (false_alarms, detection)),
        },
        {
            "title": "Precision and recall, images",
            "svg": curve_plot(image.recall[0], image.precision[0], "recall", "precision", (detection, precision)),
        },
    ]
    if report.pixel_counts is not None:
        pixel = sweep(report.pixel_counts)
        svg = curve_plot(pixel.fpr[0], pixel.pro[0], "false positive pixels", "per-region overlap", x_limit=PRO_LIMIT)
        curves.append({"title": "PRO, pixels", "svg": svg})
    return [{"title": curve["title"], "svg": Markup(curve["svg"])} for curve in curves]


def _histogram(report: Report, has_truth: bool) -> str:
    scores = np.array([row.score for row in report.rows])
    if not has_truth:
        groups = {"calibration images": (report.calibration_scores, GOOD), "these images": (scores, TEXT)}
    else:
        _, is_defective = _scores_and_truth(report)
        groups = {"good": (scores[~is_defective], GOOD), "defective": (scores[is_defective], DEFECTIVE)}
    return score_histogram({name: group for name, group in groups.items() if len(group[0])}, report.image_threshold)


def _defects(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    """How many defective images of every type were found, the type with the lowest share first."""
    defective = [row for row in rows if row.is_defective]
    totals = Counter(row.defect or "defective" for row in defective)
    found = Counter(row.defect or "defective" for row in defective if row.called_defective)
    table = [
        {"name": name, "total": total, "found": found[name], "share": found[name] / total} for name, total in totals.items()
    ]
    return sorted(table, key=lambda row: (row["share"], row["name"]))


def _outcome_counts(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    counts = Counter(row.outcome for row in rows)
    return [
        {"name": outcome.value, "key": outcome.name.lower(), "count": counts[outcome]} for outcome in Outcome if counts[outcome]
    ]


def _cards(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    cards = []
    for row in tqdm(rows, desc="report", mininterval=2, disable=None):
        pictures = row.pictures()
        shown = {
            "input": pictures.input,
            "heat map": pictures.heat_map,
            "overlay": pictures.overlay,
            "repaired": pictures.repaired,
        }
        cards.append(
            {
                "row": row,
                "key": row.outcome.name.lower(),
                "pictures": {name: data_uri(picture) for name, picture in shown.items() if picture is not None},
                "size": pictures.input.size,
                "record": None if row.file is None else _record(row),
            }
        )
    return cards


def _record(row: ReportRow) -> dict[str, Any]:
    """What is added to the list of feedback where the verdict is called wrong, but for the time."""
    return {
        "name": printable(row.name),
        "digest": file_digest(row.file()),
        "verdict": row.verdict,
        "correct_verdict": "good" if row.called_defective else "defective",
        "score": row.score,
        "p_value": row.p_value,
        "note": "",
    }


def _scores_and_truth(report: Report) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row.score for row in report.rows]), np.array([row.is_defective for row in report.rows], dtype=bool)
