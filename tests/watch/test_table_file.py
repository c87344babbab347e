"""Files that grow: each result once, whatever was cut off."""

import json
import os

import pytest
from diffad.jobs.table import read_rows
from diffad.watch.results import COLUMNS, make_result
from diffad.watch.sinks.files import BLOCK, TableFile
from diffad.watch.states import Situation

ROW = {"label": "defective", "score": 2.5, "boxes": [[1, 2, 3, 4]], "defects": 1}


def results(*numbers: int, name: str = "{}.png", identity: str = "j") -> list[dict]:
    moment = 1_700_000_000_123_456_789
    return [
        make_result({"path": name.format(n), **ROW}, identity, n, moment, moment, "digest", "as calibrated") for n in numbers
    ]


def read(path) -> list[dict]:
    return list(read_rows(path))


@pytest.fixture(params=["csv", "jsonl"])
def path(request, tmp_path):
    return tmp_path / f"results.{request.param}"


def test_results_are_read_back(path):
    sink = TableFile(path, "j")
    sink.send(results(1, 2), Situation())
    sink.send([], Situation())
    TableFile(path, "j").send(results(3, name="=cmd\n{}.png"), Situation())
    rows = read(path)
    assert [list(row) for row in rows] == [COLUMNS] * 3
    assert [int(row["number"]) for row in rows] == [1, 2, 3]
    assert rows[0]["id"] == "j-1" and rows[0]["time"] == "2023-11-14T22:13:20.123Z" and float(rows[0]["score"]) == 2.5
    assert rows[2]["path"] == ("=cmd 3.png" if path.suffix == ".csv" else "=cmd\n3.png")
    boxes = rows[0]["boxes"]
    assert (json.loads(boxes) if path.suffix == ".csv" else boxes) == [[1, 2, 3, 4]]


def test_repeated_results_are_not_written_again(path):
    sink = TableFile(path, "j")
    sink.send(results(1, 2), Situation())
    sink.send(results(1, 2, 3), Situation())
    TableFile(path, "j").send(results(2, 3, 4), Situation())
    assert [int(row["number"]) for row in read(path)] == [1, 2, 3, 4]


def test_wherever_it_was_cut_off_it_is_completed(path, monkeypatch):
    """At every byte, the header's included."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a thousand of them take seconds
    sink = TableFile(path, "j")
    sink.send(results(1, 2), Situation())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        TableFile(path, "j").send(results(1, 2), Situation())
        assert path.read_bytes() == whole, length


def test_lines_longer_than_a_block(path):
    long = "x" * BLOCK + "{}"
    sink = TableFile(path, "j")
    sink.send(results(1, 2, name=long), Situation())
    path.write_bytes(path.read_bytes()[:-5])
    sink.send(results(1, 2, 3, name=long), Situation())
    assert [int(row["number"]) for row in read(path)] == [1, 2, 3]


def test_a_file_that_was_moved_away_is_begun_anew(path, tmp_path):
    sink = TableFile(path, "j")
    sink.send(results(1), Situation())
    path.rename(tmp_path / "old")
    sink.send(results(2), Situation())
    assert [int(row["number"]) for row in read(path)] == [2]


def test_other_files_are_refused_and_left_alone(path, tmp_path):
    TableFile(path, "other").send(results(1, identity="other"), Situation())
    with pytest.raises(ValueError, match="holds something else"):
        TableFile(path, "j")
    for text in ("image,split,label\na,train,good\n", "{}\n", "[]\n", "1\n", "no line feed", "\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds something else"):
            TableFile(path, "j")
        assert path.read_text() == text
    with pytest.raises(ValueError, match="appended to .csv or .jsonl"):
        TableFile(tmp_path / "results.parquet", "j")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TableFile(tmp_path / "gone/results.csv", "j")
