"""benchmarks/prediction.py: kills and resumes, small runs from end to end, and that it would notice what it looks for."""

import json
import sys

import numpy as np
import pytest
from diffad.jobs.table import read_rows
from diffad_training.benchmarks import prediction as benchmark
from diffad_training.benchmarks.prediction import Level
from tiny_pipeline import save_tiny_model

ROWS = 500
# A run with a journal and a table that takes no model and no second to start.
JOURNALLED = """
import json, sys, time
from pathlib import Path
from diffad.jobs.resume import Journal
output, rows = Path(sys.argv[1]), int(sys.argv[2])
journal_path = output.with_name(f"{output.name}.journal")
with Journal(journal_path, {"rows": rows}) as journal:
    for i in range(journal.length, rows):
        journal.append([{"path": str(i), "score": 1.0, "label": "good"}])
        time.sleep(0.002)
    output.write_text("".join(json.dumps(row) + "\\n" for row in journal))
journal_path.unlink()
"""


def test_a_run_is_killed_at_every_wanted_moment_and_then_finished(tmp_path):
    tables = [tmp_path / name for name in ("whole.jsonl", "resumed.jsonl")]
    whole, resumed = ([sys.executable, "-c", JOURNALLED, table, ROWS] for table in tables)
    levels = list(benchmark.watched(benchmark.start(whole), benchmark.journal_of(tables[0])))
    assert 0 < max(level.rows for level in levels) <= ROWS
    kills = benchmark.killed_and_resumed(resumed, benchmark.journal_of(tables[1]), ROWS, 3, np.random.default_rng(0))
    assert kills and kills == sorted(kills) and kills[0] < ROWS
    files = {str(i) for i in range(ROWS)}
    assert benchmark.compare(*(list(read_rows(table)) for table in tables), files) == {"lost": 0, "doubled": 0, "changed": 0}


@pytest.mark.long
def test_killed_run_ends_with_the_rows_of_an_uninterrupted_one(tmp_path, monkeypatch, capsys):
    save_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results" / "prediction.jsonl")
    options = {"model": tmp_path / "tiny", "rows": 1000, "images": 7, "kills": 4, "batch_size": 4}
    benchmark.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    (record,) = [json.loads(line) for line in (tmp_path / "results" / "prediction.jsonl").read_text().splitlines()]
    assert record == json.loads(capsys.readouterr().out)
    assert (record["lost"], record["doubled"], record["changed"]) == (0, 0, 0)
    assert len(record["killed_after_rows"]) >= 1 and 0 < record["killed_after_rows"][0] < 1000
    assert record["peak_resident_mib"] > 100


def row(path: str, score: float = 1.0, label: str = "good") -> dict:
    return {"path": path, "score": score, "label": label}


@pytest.mark.parametrize(
    ("resumed", "expected"),
    [
        ([row("a"), row("b", 1 + 1e-6)], (0, 0, 0)),
        ([row("a")], (1, 0, 0)),
        ([row("a"), row("b"), row("a")], (0, 1, 0)),
        ([row("a"), row("b", 1.1)], (0, 0, 1)),
        ([row("a"), row("b", label="defective")], (0, 0, 1)),
        ([row("a"), row("b"), row("c")], (0, 0, 1)),
    ],
)
def test_every_kind_of_damage_is_counted(resumed, expected):
    found = benchmark.compare([row("a"), row("b")], resumed, {"a", "b"})
    assert (found["lost"], found["doubled"], found["changed"]) == expected


def test_a_run_that_slows_down_and_grows_shows_it():
    levels = [Level(0, 0, 0, 50)] + [Level(1 + i, 1 + i, 10 + 10 * i, 100) for i in range(50)]
    levels += [Level(50 + 2 * i, 50 + i, 500 + 5 * i, 200) for i in range(1, 101)]
    levels += [Level(400, 160, 1000, 300)]  # the table is written
    found = benchmark.summarize(levels)
    assert found["rows_per_second"] == {"first_tenth": 10, "last_tenth": 2.5}
    assert found["rows_per_cpu_second"] == {"first_tenth": 10, "last_tenth": 5}
    assert found["resident_mib"] == {"first_tenth": 100, "last_tenth": 200}
    assert (found["peak_resident_mib"], found["seconds"]) == (300, 400)


def test_a_run_too_short_to_be_seen_twice_has_no_rate():
    found = benchmark.summarize([Level(0, 0, 0, 50), Level(1, 1, 300, 70)])
    assert found["rows_per_second"] == {"first_tenth": None, "last_tenth": None}
    assert found["resident_mib"] == {"first_tenth": None, "last_tenth": 70}


def test_lines_are_counted_as_a_file_grows(tmp_path):
    lines = benchmark.LineCount(tmp_path / "journal")
    assert lines.update() == 0
    with (tmp_path / "journal").open("ab") as file:
        for written, expected in ((b"a\nb", 1), (b"\n", 2), (b"c\nd\n", 4)):
            file.write(written)
            file.flush()
            assert lines.update() == expected
