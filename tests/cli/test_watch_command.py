"""diffad watch: a folder judged with a tiny pipeline, what is refused before a model is loaded, a signal."""

import json
import os
import signal
import threading
import time

import pytest
from cli_runner import run, save_images
from diffad.jobs.table import read_rows
from tiny_pipeline import smooth_images


def test_verdicts_are_those_of_predict(model, parts, tmp_path):
    tables = [tmp_path / "line.csv", tmp_path / "line.jsonl"]
    arguments = ["watch", parts / "test", "--model", model, "--journal", tmp_path / "journal", "--once"]
    arguments += [word for table in tables for word in ("--to", table)]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "5 parts, 2 of them called defective, 0 without a verdict\n"
    assert run("predict", parts / "test", "--model", model, "--output", tmp_path / "all.jsonl").exit_code == 0
    expected = {row["path"]: row for row in read_rows(tmp_path / "all.jsonl")}
    rows = list(read_rows(tables[1]))
    assert {row["path"] for row in rows} == set(expected)
    for row in rows:
        assert row["score"] == pytest.approx(expected[row["path"]]["score"], rel=1e-4)
        assert {name: row[name] for name in ("label", "boxes", "pages")} == {
            name: expected[row["path"]][name] for name in ("label", "boxes", "pages")
        }
        assert row["monitor"] == "as calibrated"
    again = run(*arguments)
    assert again.exit_code == 0 and again.stdout.startswith("0 parts")
    assert len(list(read_rows(tables[0]))) == 5
    monitored = run("monitor", model, "--results", tables[0], "--state", tmp_path / "state.json")
    assert monitored.exit_code in (0, 3) and "5 parts" in monitored.stdout, monitored.output


def test_parts_that_were_judged_with_other_settings_are_not_judged_again_and_that_is_said(model, tmp_path):
    new = save_images(tmp_path / "new", smooth_images(2, seed=20))
    arguments = ("watch", new, "--model", model, "--journal", tmp_path / "journal", "--once", "--to", tmp_path / "a.csv")
    assert "other settings" not in run(*arguments).stderr
    result = run(*arguments, "--false-alarm-rate", "0.3")
    assert "(false alarm rate None there, 0.3 now); none of them is judged again" in result.stderr
    assert result.stdout.startswith("0 parts")
    assert "other settings" not in run(*arguments, "--false-alarm-rate", "0.3").stderr


def test_results_that_wait_have_exit_code_1(model, tmp_path, monkeypatch):
    from diffad.watch import inspection

    monkeypatch.setattr(inspection, "PATIENCE", 0.1)
    new = save_images(tmp_path / "new", smooth_images(1, seed=20))
    arguments = ("--model", model, "--journal", tmp_path / "journal", "--once", "--to", "http://127.0.0.1:9/parts")
    result = run("watch", new, *arguments)
    assert result.exit_code == 1 and "has not got 1 results" in result.stderr, result.output
    assert "sink http://127.0.0.1:9/parts failed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tmp}/gone", "--to", "a.csv"), "no such folder, video file or device"),
        (("{tmp}", "--to", "a.parquet"), "appended to .csv or .jsonl"),
        (("{tmp}", "--to", "{tmp}/gone/a.csv"), "no such folder"),
        (("{tmp}", "--to", "ftp://host"), "results go to"),
        (("{tmp}", "--to", "{tmp}/a.csv", "--interval", "1"), "every image of a folder is a part"),
        (("http://127.0.0.1:9/", "--to", "{tmp}/a.csv", "--once"), "a stream has no end"),
        (("{tmp}", "--to", "{tmp}/a.csv", "--journal", "{tmp}/gone/journal"), "no such folder"),
        (("{tmp}", "--to", "{tmp}/a.csv", "--level", "2"), "level must lie between 0 and 1"),
        (("{tmp}", "--to", "{tmp}/a.csv", "--false-alarm-rate", "0.001"), "calibrate on"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(model, tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    result = run("watch", "--journal", tmp_path / "journal", *arguments, "--model", model)
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("error:") == 1, result.output


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_a_signal_ends_it_after_the_part_at_hand(model, tmp_path):
    new, table = save_images(tmp_path / "new", smooth_images(2, seed=20)), tmp_path / "line.jsonl"
    before = signal.getsignal(signal.SIGTERM)

    def end() -> None:
        while not table.exists() or table.read_text().count("\n") < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    result = run("watch", new, "--model", model, "--to", table, "--journal", tmp_path / "journal")
    thread.join(10)
    assert result.exit_code == 0 and result.stdout.startswith("2 parts"), result.output
    assert [json.loads(line)["number"] for line in table.read_text().splitlines()] == [1, 2]
    assert signal.getsignal(signal.SIGTERM) is before
