"""diffad monitor: exit codes, reports, errors before anything is scored."""

import json

import pytest
from cli_runner import run, save_images
from feedback_records import write_feedback
from tiny_pipeline import smooth_images


def test_unchanged_production_has_exit_code_0_and_a_change_3(model, tmp_path):
    new = save_images(tmp_path / "new", smooth_images(6, seed=20))
    arguments = ("monitor", model, "--state", tmp_path / "state.json")
    result = run(*arguments, new, "--report", tmp_path / "report.html")
    assert result.exit_code == 0 and result.stdout.startswith("ok: 6 parts"), result.output
    page = (tmp_path / "report.html").read_text()
    assert (
        "is as calibrated" in page
        and "<svg" in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    )
    dark = save_images(tmp_path / "dark", [image.point(lambda value: value // 3) for image in smooth_images(20, seed=21)])
    good = save_images(tmp_path / "good", smooth_images(20, seed=22))
    for ending in ("html", "json"):
        result = run(*arguments, dark, "--reference", good, "--report", tmp_path / f"changed.{ending}")
        assert result.exit_code == 3 and result.stdout.startswith("changed: 26 parts"), result.output
        assert "ALARM at part" in result.stdout and "darker" in result.stdout
    assert (tmp_path / "changed.html").read_text().count("data:image/") == 8
    report = json.loads((tmp_path / "changed.json").read_text())
    assert report["state"] == "changed" and len(report["history"]) == 26 and report["suggestions"]


def test_tables_of_predict_are_taken(model, parts, tmp_path):
    table = tmp_path / "results.csv"
    assert run("predict", parts / "test", "--model", model, "--output", table).exit_code == 0
    result = run("monitor", model, "--results", table, "--state", tmp_path / "state.json")
    assert result.exit_code in (0, 3) and "5 parts, 2 of them called defective" in result.stdout, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to monitor"),
        (("{tmp}/gone",), "no such folder"),
        (("{tmp}", "--report", "{tmp}/report.pdf"), "must end in .html or .json"),
        (("{tmp}", "--level", "2"), "level must lie between 0 and 1"),
        (("{tmp}", "--defect-rate", "1"), "defect_rate must lie in"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(model, tmp_path, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    result = run("monitor", model, *arguments, "--state", tmp_path / "state.json")
    assert result.exit_code == 1 and message in result.stderr, result.output
    assert not (tmp_path / "state.json").exists()


def test_the_operators_word_is_taken_late_and_raises_an_alarm(model, tmp_path):
    """Rejected parts of a table and of a folder, whose files tell them; a report of another part counts nothing."""
    shown = save_images(tmp_path / "shown", [image.point(lambda v: 255 - v // 3) for image in smooth_images(30, seed=23)])
    feedback, table = tmp_path / "feedback.jsonl", tmp_path / "results.csv"
    assert run("predict", shown, "--model", model, "--output", table).exit_code == 0
    arguments = ("monitor", model, "--feedback", feedback, "--state", tmp_path / "state.json")
    first = run(*arguments, "--results", table)
    assert "30 parts, 30 of them called defective" in first.stdout and "feedback: e-value 0," in first.stdout, first.output
    other = save_images(tmp_path / "other", smooth_images(1, seed=24)) / "00.png"
    missed = save_images(tmp_path / "missed", smooth_images(1, seed=25)) / "00.png"
    write_feedback(feedback, wrongly_rejected=[*sorted(shown.iterdir()), other], missed=[missed])
    result = run(*arguments, "--results", table)
    assert result.exit_code == 3, result.output
    assert "30 of the rejected parts were reported as good, 1 images as missed defects" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.strip().startswith("feedback: e-value")]
    assert "alarm at 100; ALARM at part 30" in line
    feedback.write_text("{}\n")
    assert "line 1: not a record of feedback" in run(*arguments, "--results", table).stderr
