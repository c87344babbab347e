"""Tables: the same rows in every format, whatever the names of files are, and read again as they were."""

import csv
import json

import pytest
from diffad.jobs.table import read_rows, write_table
from prediction_stub import Stub, run


def test_rows_of_a_table_are_read_one_by_one(tmp_path):
    for suffix in ("csv", "jsonl", "parquet"):
        run(Stub(), tmp_path / f"out.{suffix}", 12)
        rows = read_rows(tmp_path / f"out.{suffix}")
        assert next(rows)["path"] == "0" and [row["path"] for row in rows] == [str(i) for i in range(1, 12)]


def test_a_table_with_thousands_of_boxes_is_read(tmp_path):
    boxes = [[1000, 1000, 1010, 1010]] * 6000
    for suffix in ("csv", "jsonl", "parquet"):
        write_table([{"path": "a", "boxes": boxes}], tmp_path / f"out.{suffix}")
        (row,) = read_rows(tmp_path / f"out.{suffix}")
        assert row["boxes"] == (json.dumps(boxes) if suffix == "csv" else boxes)


TEXTS = ["=1+1", "+1", "-1", "@sum", "\tx", "\rx", "\nx", "'=1", "''=1", "'a", "a=1", "'", "", "=", "plain", "\N{SNOWMAN}"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_cells_that_a_spreadsheet_would_run_do_not_and_are_read_as_they_were(tmp_path, suffix):
    rows = [{"path": text, "category": text, "error": text, "score": -1.5} for text in TEXTS]
    write_table(rows, tmp_path / f"out.{suffix}")
    for read, row in zip(read_rows(tmp_path / f"out.{suffix}"), rows, strict=True):
        assert (read["path"], read["category"], read["error"]) == (row["path"],) * 3
        assert float(read["score"]) == -1.5
    if suffix == "csv":
        with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
            cells = [row[name] for row in csv.DictReader(file) for name in ("path", "category", "error")]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.csv", b"path,score\na,1,2\n"),
        ("out.csv", b"path,score\na\n"),
        ("out.csv", b"name\na\n"),
        ("out.csv", b"path\n\xff\n"),
        ("out.jsonl", b"[1]\n"),
        ("out.jsonl", b'{"path": 1}\n'),
        ("out.jsonl", b"{\n"),
        ("out.jsonl", b"[" * 100_000 + b"\n"),
        ("out.parquet", b"no table"),
        ("out.parquet", b"PAR1" + bytes(100) + b"PAR1"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not a table of predictions"):
        list(read_rows(tmp_path / name))
