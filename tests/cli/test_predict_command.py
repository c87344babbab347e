"""diffad predict: tables and reports."""

import json
import os

import pytest
from cli_runner import run
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_writes_a_report_of_its_table(model, parts, tmp_path, suffix):
    result = run(
        "predict", parts / "test", "--model", model, "--output", tmp_path / f"out{suffix}", "--report", tmp_path / "report.html"
    )
    assert result.exit_code == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/") >= 5 and "called defective" in text


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_report_of_a_finished_table_takes_no_second_scoring(model, parts, tmp_path, monkeypatch, suffix):
    output, report = tmp_path / f"out{suffix}", tmp_path / "pages" / "report.html"
    arguments = ("predict", parts / "test", "--model", model, "--output", output)
    assert run(*arguments).exit_code == 0
    table = output.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("diffad.jobs.predict.rows_of", lambda *_: pytest.fail("was scored again"))
        result = run(*arguments, "--report", report)
    assert result.exit_code == 0 and "5 images, 2 of them called defective" in result.stdout
    assert "was complete already, nothing was scored" in result.stdout
    assert output.read_bytes() == table and report.read_text().count("data:image/") >= 5
    result = run(*arguments, "--false-alarm-rate", 0.1, "--report", report)
    assert result.exit_code == 1 and "of a run that differs: false alarm rate None there, 0.1 now" in result.stderr


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("{tmp}", "{tmp}: is a folder; name a file for the report"),
        ("{tmp}/file/report.html", "{tmp}/file/report.html: {tmp}/file is a file, no folder"),
        ("{tmp}/x/../out.jsonl", "{tmp}/x/../out.jsonl: is the table, too"),
    ],
)
def test_a_report_that_can_not_be_written_is_refused_before_anything_is_scored(model, parts, tmp_path, report, message):
    (tmp_path / "file").write_text("kept")
    arguments = ("predict", parts / "test", "--model", model, "--output", tmp_path / "out.jsonl")
    result = run(*arguments, "--report", report.format(tmp=tmp_path))
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith(f"error: {message.format(tmp=tmp_path)}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model", "parts"]


def test_a_report_of_several_categories_is_refused_before_anything_is_scored(parts, tmp_path):
    pipe = tiny_pipeline(("nut", "bolt"), weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.save_pretrained(tmp_path / "model")
    result = run(
        *("predict", parts / "test", "--model", tmp_path / "model"),
        *("--output", tmp_path / "out.jsonl", "--report", tmp_path / "report.html"),
    )
    assert result.exit_code == 1 and "name the one to report on with --category" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "parts"]


def test_a_single_image_has_its_row_and_its_report(model, parts, tmp_path):
    arguments = ("predict", parts / "test/block/0.png", "--model", model, "--output", tmp_path / "out.jsonl")
    result = run(*arguments, "--report", tmp_path / "report.html")
    assert result.exit_code == 0 and "1 images, 1 of them called defective" in result.stdout
    assert json.loads((tmp_path / "out.jsonl").read_text())["path"] == "0.png"
    assert "called defective" in (tmp_path / "report.html").read_text()


def test_names_that_are_no_text_end_neither_run_nor_report(model, tmp_path):
    folder = tmp_path / os.fsdecode(b"line \xfe")
    folder.mkdir()
    for name, image in zip((b"\xff.png", b"=1.png"), smooth_images(2, seed=20), strict=True):
        image.save(tmp_path / "image.png")
        (tmp_path / "image.png").rename(folder / os.fsdecode(name))
    (folder / os.fsdecode(b"broken \xff.png")).write_bytes(b"no image")
    output = tmp_path / os.fsdecode(b"out \xfe.csv")
    result = run("predict", folder, "--model", model, "--output", output, "--report", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert "3 images" in result.stdout and "unreadable images: 1" in result.stderr
    assert (tmp_path / "report.html").read_text().count("data:image/") >= 2 * 3
    result = run("predict", folder, "--model", model, "--output", output, "--false-alarm-rate", 0.1)
    assert result.exit_code == 1 and "of a run that differs" in result.stderr


def test_predict_scores_a_folder(model, parts, tmp_path):
    result = run("predict", parts / "test", "--model", model, "--output", tmp_path / "out.jsonl", "--masks", tmp_path / "masks")
    assert result.exit_code == 0 and "5 images, 2 of them called defective" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["defective"] * 2 + ["good"] * 3
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 5


def test_unreadable_images_are_reported_and_fail_the_run_only_if_asked(model, parts, tmp_path):
    (parts / "test" / "broken.png").write_bytes(b"no image")
    arguments = ("predict", parts / "test", "--model", model)
    result = run(*arguments, "--output", tmp_path / "out.csv")
    assert result.exit_code == 0 and "6 images" in result.stdout
    assert "unreadable images: 1\n" in result.stderr and "broken.png: not a readable image" in result.stderr
    assert run(*arguments, "--output", tmp_path / "strict.csv", "--strict").exit_code == 1
    assert (tmp_path / "strict.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "spark"), "--engine spark: expected process or ray"),
        (("--workers", 2), "--workers 2: is for --engine ray"),
        (("--address", "auto"), "--address auto: is for --engine ray"),
        (("--engine", "ray", "--device", "cuda"), "--device cuda: workers of --engine ray compute on CPUs; leave it out"),
        (("--engine", "ray", "--address", "127.0.0.1:1"), "--address 127.0.0.1:1: no Ray cluster there"),
    ],
)
def test_options_of_engines_that_do_not_go_together_are_refused(model, parts, tmp_path, words, message):
    if "127.0.0.1:1" in words:
        pytest.importorskip("ray.data")
    result = run("predict", parts / "test", "--model", model, "--output", tmp_path / "out.jsonl", *words)
    assert result.exit_code == 1 and f"error: {message}" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_store_has_no_report(model, parts, tmp_path):
    source, report = (parts / "test").as_uri(), tmp_path / "report.html"
    arguments = ("predict", source, "--model", model, "--output", tmp_path / "out.jsonl")
    result = run(*arguments, "--report", report)
    assert result.exit_code == 1 and "--report shows images of a folder" in result.stderr and not report.exists()
    result = run(*arguments)
    assert result.exit_code == 0 and "5 images, 2 of them called defective" in result.stdout
