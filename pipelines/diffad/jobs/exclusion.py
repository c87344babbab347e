"""The list of images that an audit writes and that training leaves out."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ..data import DataError, Sample
from ..system.text import original_text, safe_cell
from .audit import Audit, Finding

COLUMNS = ("path", "rank", "reason", "score", "of")


def write_list(result: Audit, path: Path) -> None:
    """Writes all good images as CSV, those to leave out first with their reason, the others by rank without one.

    `diffad train --exclude` leaves out the rows that have a reason.
    """
    lines = []
    rank = {int(i): place for place, i in enumerate(result.outliers.order, start=1)}
    findings = {finding.index: finding for finding in result.findings}
    for i in [*findings, *(int(i) for i in result.outliers.order if int(i) not in findings)]:
        finding = findings.get(i, Finding(i, ""))
        score = f"{result.outliers.scores[i]:.3f}"
        lines.append((safe_cell(result.samples[i].name), rank[i], finding.reason, score, safe_cell(finding.of)))
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, *lines])


def read_excluded(path: Path) -> list[str]:
    """Names of the images that a list says to leave out: rows of an audit with a reason, or lines of a text file.

    Raises:
        DataError: if it can't be read, or its first line is that of another table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); name a list that `diffad audit` wrote") from None
    if path.suffix.lower() != ".csv":
        return [line.strip() for line in text.splitlines() if line.strip()]
    rows = list(csv.reader(text.splitlines()))
    if not rows or not {"path", "reason"} <= set(rows[0]):
        raise DataError(f"{path}: its first line must name path and reason; name a list that `diffad audit` wrote")
    table = [dict(zip(rows[0], row)) for row in rows[1:]]
    return [original_text(row["path"]) for row in table if row.get("reason", "").strip()]


def without_excluded(samples: Sequence[Sample], names: Sequence[str], path: Path) -> list[Sample]:
    """Samples but those of these names.

    Raises:
        DataError: naming an image of the list that is not among the samples.
    """
    missing = sorted(set(names) - {sample.name for sample in samples})
    if missing:
        raise DataError(
            f"{path}: lists {missing[0]}, which is not among the good images ({len(missing)} of {len(set(names))} are not); "
            "audit the data that is trained on, and give its list"
        )
    excluded = set(names)
    return [sample for sample in samples if sample.name not in excluded]
