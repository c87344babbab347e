"""The table of a prediction run: its columns, and writing it as CSV, JSON lines or Parquet, whatever the file's ending says."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Everything but `path` is empty for an image that could not be read; `error` is empty for all others.
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string()),  # relative to the folder of images
        pa.field("score", pa.float32()),  # unbounded, higher is more anomalous
        pa.field("p_value", pa.float64()),
        pa.field("label", pa.string()),  # good or defective
        pa.field("defect_pixels", pa.int64()),  # of the image at its own size
        pa.field("defect_share", pa.float64()),  # of the image's pixels, in [0, 1]
        pa.field("defects", pa.int32()),  # connected regions
        pa.field("boxes", pa.list_(pa.list_(pa.int32()))),  # left, top, right, bottom of each, the largest region first
        pa.field("category", pa.string()),  # given or recognised, of a model of several; else empty
        pa.field("false_alarm_rate", pa.float64()),  # that the label is for: requested, or the category's default
        pa.field("error", pa.string()),
    ]
)
ROWS_AT_ONCE = 4096
LONGEST_CELL = 2**31 - 1  # characters; the boxes of a noisy image exceed the csv module's 131,072


def check_table_path(path: Path) -> None:
    """Raises ValueError unless a table can be written there."""
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: a table's name must end in {', '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")


def write_table(rows: Iterable[dict], path: Path) -> None:
    """Streams rows into a file that appears under its name when it is complete."""
    unfinished = path.with_name(f"{path.name}.tmp")
    WRITERS[path.suffix.lower()](rows, unfinished)
    os.replace(unfinished, path)


def _write_csv(rows: Iterable[dict], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, SCHEMA.names)
        writer.writeheader()
        for row in rows:
            boxes = row.get("boxes")
            writer.writerow({**row, "boxes": None if boxes is None else json.dumps(boxes)})


def _write_json_lines(rows: Iterable[dict], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: row.get(name) for name in SCHEMA.names}, ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterable[dict], path: Path) -> None:
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for chunk in _chunks(rows):
            writer.write_table(pa.Table.from_pylist(chunk, schema=SCHEMA))


def _chunks(rows: Iterable[dict]) -> Iterator[list[dict]]:
    rows = iter(rows)
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        yield chunk


WRITERS: dict[str, Callable[[Iterable[dict], Path], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}


def read_rows(path: Path) -> Iterator[dict]:
    """The rows of a written table one by one; numbers of a CSV file are text, and its empty cells empty text."""
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(ROWS_AT_ONCE):
                yield from batch.to_pylist()
        return
    csv.field_size_limit(LONGEST_CELL)
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file) if path.suffix.lower() == ".csv" else map(json.loads, file)
