"""benchmarks/scaling.py: what it counts and extrapolates, and its tables; the runs need Ray and a core for each worker."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffad_training.benchmarks import scaling
from diffad_training.benchmarks.prediction import Level, link_files
from markdown_tables import figures, row_of


def test_rates_leave_out_what_comes_before_the_first_row_and_after_the_last():
    levels = [Level(0, 0, 0, 1), Level(30, 9, 0, 1), Level(31, 10, 100, 1), Level(41, 10.5, 600, 1), Level(60, 14, 600, 1)]
    assert scaling.rates(levels) == {"per_second": 50, "per_driver_cpu_second": 1000}


def test_a_run_that_was_seen_once_has_no_rate():
    with pytest.raises(ValueError, match="give it more --rows"):
        scaling.rates([Level(0, 0, 0, 1), Level(1, 1, 600, 1)])


def test_fleets_are_extrapolated_by_the_formula_of_the_card():
    eight, sixty_four, daily = scaling.extrapolated(one=10, efficiency=0.9, driver=100)
    assert eight == ("8 workers", 72, 1) and sixty_four == ("64 workers", 576, 6)
    name, rate, runs = daily
    workers = int(name.partition(" ")[0])
    # 100 million a day, and not with a worker less.
    assert rate * 86_400 >= 1e8 > (workers - 1) * 9 * 86_400
    assert runs == math.ceil(rate / 100)


@pytest.mark.parametrize(
    ("second", "expected"),
    [(["a", "b", "c"], 0), (["a", "b"], 1), (["a", "b", "b"], 1), (["b", "a", "c"], 2), (["a", "b", "c", "c"], 1)],
)
def test_rows_that_differ_are_counted(tmp_path, second, expected):
    for name, paths in {"first": ["a", "b", "c"], "second": second}.items():
        pq.write_table(pa.table({"path": paths}), tmp_path / name)
    assert scaling.differing_rows(tmp_path / "first", tmp_path / "second") == expected


def test_files_are_linked_in_turn(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text(name)
    link_files(tmp_path / "links", 1001, [tmp_path / "a.png", tmp_path / "b.jpg"])
    links = sorted(path.relative_to(tmp_path / "links").as_posix() for path in (tmp_path / "links").rglob("*.*"))
    assert len(links) == 1001 and links[:2] == ["000/000000.png", "000/000001.jpg"] and links[-1] == "001/001000.png"
    assert (tmp_path / "links/000/000999.jpg").read_text() == "b.jpg"


def test_tables_show_the_newest_results(tmp_path):
    card, results = tmp_path / "card.md", tmp_path / "results.jsonl"
    names = ("workers", "kills", "fleets")
    card.write_text("".join(f"<!-- scaling:{name} -->\n<!-- /scaling -->\n" for name in names))
    scaling.update_tables(card, results)
    assert card.read_text().count("Not measured yet.") == 3
    rates = {
        "1": {"per_second": 10.0, "per_driver_cpu_second": 900.0},
        "2": {"per_second": 18.0, "per_driver_cpu_second": 800.0},
    }
    timed = {"model": "m", "kind": "timed", "load": 2.0, "workers": rates}
    killed = {"model": "m", "kind": "killed", "rows": 100_000, "killed_after_rows": [5, 70_000], "differing_rows": 0}
    results.write_text("".join(json.dumps(line) + "\n" for line in ({**killed, "differing_rows": 9}, timed, killed)))
    scaling.update_tables(card, results)
    text = card.read_text()
    two = figures(row_of(text, "m", "2"))
    assert (two["images/s"], two["times one"], two["rows per CPU second of the driver"]) == ([18.0], [1.8], [800])
    kills = figures(row_of(text, "m", "100,000"))
    assert (kills["workers killed"], kills["after rows"], kills["rows that differ"]) == ([2], [5, 70_000], [0])
    assert figures(row_of(text, "m", "64 workers"))["images/s"] == [576]
