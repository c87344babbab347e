"""The table of a prediction run: its columns, and writing it as CSV, JSON lines or Parquet, whatever the file's ending says."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..system.text import one_line, original_text, safe_cell

# Everything but `path` is empty for an image that could not be read; `error` is empty for all others.
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string()),  # relative to the folder of images
        pa.field("score", pa.float32()),  # unbounded, higher is more anomalous
        pa.field("p_value", pa.float64()),
        pa.field("label", pa.string()),  # good, defective, or unknown: of a product that the model has never seen
        pa.field("defect_pixels", pa.int64()),  # of the image at its own size
        pa.field("defect_share", pa.float64()),  # of the image's pixels, in [0, 1]
        pa.field("defects", pa.int32()),  # connected regions
        pa.field("boxes", pa.list_(pa.list_(pa.int32()))),  # left, top, right, bottom of each, the largest region first
        pa.field("category", pa.string()),  # given or recognised, of a model of several; else empty
        pa.field("false_alarm_rate", pa.float64()),  # that the label is for: requested, or the category's default
        pa.field("error", pa.string()),
        pa.field("image_threshold", pa.float64()),  # a score above it is labelled defective
        pa.field("pixel_threshold", pa.float64()),  # pixels above it count as defective
        pa.field("pages", pa.int32()),  # of the file, of which the first is judged
    ]
)
TEXT_COLUMNS = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
ROWS_AT_ONCE = 4096
LONGEST_CELL = 2**31 - 1  # characters; the boxes of a noisy image exceed the csv module's 131,072


def check_table_path(path: Path) -> None:
    """Raises an error unless a table can be written there.

    Raises:
        ValueError: if the name has no ending of a table.
        FileNotFoundError: if there is no folder for it.
    """
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: a table's name must end in {', '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")


def check_rows(rows: Iterable[dict], paths: Sequence[str]) -> None:
    """Refuses rows that a table can't hold, or that are not those of the first of some images.

    Raises:
        ValueError: naming the first of these rows.
    """
    number = 0
    for chunk in _chunks(rows):
        for row in chunk:
            if number == len(paths) or row.get("path") != paths[number]:
                expected = f", not {paths[number]!r}" if number < len(paths) else ", and there are no more images"
                raise ValueError(f"row {number + 1} is of {str(row.get('path'))[:200]!r}{expected}")
            number += 1
        try:
            pa.Table.from_pylist(chunk, schema=SCHEMA)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise ValueError(
                f"one of the rows {number - len(chunk) + 1} to {number} fits no table: {one_line(error)}"
            ) from None


def write_table(rows: Iterable[dict], path: Path) -> None:
    """Streams rows into a file that appears under its name when it is complete."""
    unfinished = path.with_name(f"{path.name}.tmp")
    WRITERS[path.suffix.lower()](rows, unfinished)
    os.replace(unfinished, path)


def csv_row(row: dict) -> dict:
    """A row with the cells that a CSV file holds: no formulas, and boxes as JSON."""
    texts = {name: safe_cell(row[name]) for name in TEXT_COLUMNS if row.get(name)}
    boxes = None if row.get("boxes") is None else json.dumps(row["boxes"])
    return {**row, **texts, "boxes": boxes}


def _write_csv(rows: Iterable[dict], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, SCHEMA.names, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow(csv_row(row))


def _write_json_lines(rows: Iterable[dict], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: row.get(name) for name in SCHEMA.names}, ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterable[dict], path: Path) -> None:
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for chunk in _chunks(rows):
            writer.write_table(pa.Table.from_pylist(chunk, schema=SCHEMA))


WRITERS: dict[str, Callable[[Iterable[dict], Path], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}


def read_rows(path: Path) -> Iterator[dict]:
    """Reads the rows of a written table one by one; numbers of a CSV file are text, and its empty cells empty text.

    Raises:
        ValueError: naming the file, if it is no table of predictions.
    """
    try:
        for row in READERS[path.suffix.lower()](path):
            if not isinstance(row, dict) or not isinstance(row.get("path"), str):
                raise ValueError("a row without a path")
            yield row
    except (ValueError, csv.Error, pa.ArrowException, RecursionError) as error:
        raise ValueError(f"{path}: not a table of predictions ({one_line(error)}); remove it, or name another file") from None


def _read_csv(path: Path) -> Iterator[dict]:
    csv.field_size_limit(LONGEST_CELL)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if None in row or None in row.values():
                raise ValueError(f"a row of other columns than the first one's, {', '.join(map(str, row))}")
            yield {**row, **{name: original_text(row[name]) for name in TEXT_COLUMNS if name in row}}


def _read_json_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _read_parquet(path: Path) -> Iterator[dict]:
    with path.open("rb") as file:
        try:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(ROWS_AT_ONCE):
                    yield from batch.to_pylist()
        except OSError as error:  # how pyarrow calls damage within the file
            raise ValueError(str(error)) from None


READERS: dict[str, Callable[[Path], Iterator[dict]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def _chunks(rows: Iterable[dict]) -> Iterator[list[dict]]:
    rows = iter(rows)
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        yield chunk
