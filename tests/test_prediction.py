"""Predictions of folders: rows as the pipeline gives them, whatever stops the run; memory that does not grow."""

import csv
import dataclasses
import fcntl
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from diffad.data import DataError
from diffad.imaging.reading import ImageError
from diffad.imaging.regions import bounding_boxes
from diffad.jobs.fingerprint import files_digest
from diffad.jobs.journal import Journal, only_writer
from diffad.jobs.predict import PredictionSettings, predict_folder, rows_of, run_prediction
from diffad.jobs.table import SCHEMA, read_rows, write_table
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline

RATE = 0.1


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(19, seed=4))
    return pipe


@pytest.fixture
def folder(tmp_path):
    """Five readable images of different sizes, one of them turned by its EXIF tag and one with a block, and a broken one."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    images = smooth_images(5, seed=20, size=(48, 40))
    turned = Image.Exif()
    turned[0x0112] = 6
    images[0].save(folder / "a.png", exif=turned)
    pixels = np.array(images[1])
    pixels[10:25, 8:30] = np.where(np.indices((15, 22)).sum(0) % 4 < 2, 0, 255)[..., None]
    Image.fromarray(pixels).save(folder / "b.png")
    images[2].resize((64, 32)).save(folder / "sub" / "c.bmp")
    images[3].convert("L").save(folder / "sub" / "d.png")
    (folder / "sub" / "e.png").write_bytes(b"no image")
    images[4].save(folder / "z.png")
    return folder


NAMES = ["a.png", "b.png", "sub/c.bmp", "sub/d.png", "sub/e.png", "z.png"]


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores_of(rows):
    return np.array([row.pop("score") for row in rows], dtype=float)


def predict(pipe, folder, output, batch_size=2, **settings):
    return predict_folder(pipe, folder, output, PredictionSettings(RATE, **settings), batch_size)


def test_rows_are_what_the_pipeline_says(pipe, folder, tmp_path):
    summary = predict(pipe, folder, tmp_path / "out.jsonl")
    rows = read_json_lines(tmp_path / "out.jsonl")
    assert [row["path"] for row in rows] == NAMES
    readable = [row for row in rows if row["error"] is None]
    expected = pipe([folder / row["path"] for row in readable], batch_size=2, false_alarm_rate=RATE)
    np.testing.assert_allclose([row["score"] for row in readable], expected.image_scores, rtol=1e-5)
    assert [row["p_value"] for row in readable] == expected.p_values.tolist()
    assert [row["label"] == "defective" for row in readable] == expected.is_defective.tolist()
    assert [row["defect_pixels"] for row in readable] == [mask.sum() for mask in expected.masks]
    assert [row["defect_share"] for row in readable] == [mask.mean() for mask in expected.masks]
    assert [row["boxes"] for row in readable] == [bounding_boxes(mask) for mask in expected.masks]
    assert rows[1]["label"] == "defective" and rows[1]["defects"] == len(rows[1]["boxes"]) > 0
    assert "e.png" in rows[4]["error"] and rows[4]["score"] is None and rows[4]["label"] is None
    assert (summary.images, summary.unreadable, summary.first_errors) == (6, 1, [rows[4]["error"]])
    assert summary.defective == expected.is_defective.sum()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.jsonl.lock", "images", "out.jsonl", "out.jsonl.run.json"]


def test_csv_and_parquet_hold_what_json_lines_hold(pipe, folder, tmp_path):
    for suffix in ("jsonl", "csv", "parquet"):
        predict(pipe, folder, tmp_path / f"out.{suffix}")
    rows = read_json_lines(tmp_path / "out.jsonl")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == SCHEMA.names == list(rows[0])
    assert table.to_pylist() == rows
    with (tmp_path / "out.csv").open(newline="") as file:
        as_text = list(csv.DictReader(file))
    empty = {None: ""}
    assert [row["path"] for row in as_text] == NAMES
    for text, row in zip(as_text, rows, strict=True):
        assert text["score"] == str(row["score"] if row["score"] is not None else "")
        assert text["boxes"] == (json.dumps(row["boxes"]) if row["boxes"] is not None else "")
        assert text["label"] == empty.get(row["label"], row["label"]) and text["error"] == (row["error"] or "")


def test_pictures_are_written_under_the_images_names(pipe, folder, tmp_path):
    maps, overlays, masks = tmp_path / "maps", tmp_path / "overlays", tmp_path / "masks"
    predict(pipe, folder, tmp_path / "out.csv", maps=maps, overlays=overlays, masks=masks)
    output = pipe([folder / name for name in ("a.png", "b.png")], batch_size=2, false_alarm_rate=RATE)
    for i, name in enumerate(("a", "b")):
        np.testing.assert_allclose(np.asarray(Image.open(maps / f"{name}.tiff")), output.anomaly_maps[i], rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(Image.open(masks / f"{name}.png")), 255 * output.masks[i])
        assert Image.open(overlays / f"{name}.png").size == output.masks[i].shape[::-1]
    assert (output.anomaly_maps[0].shape, output.anomaly_maps[1].shape) == ((48, 40), (40, 48))
    assert (maps / "sub" / "c.tiff").is_file() and not (maps / "sub" / "e.tiff").exists()


class Stub:
    """Images and scores without work: a name's number decides both. Counts what it scored; can be killed."""

    def __init__(self, kill_at: str | None = None):
        self.scored, self.kill_at = [], kill_at

    def read(self, name):
        if int(name) % 7 == 3:
            raise ImageError(f"{name}: unreadable")
        return Image.new("RGB", (8, 8))

    def __call__(self, names, images):
        if self.kill_at in names:
            raise KeyboardInterrupt
        self.scored += names
        return [{"path": name, "score": float(name), "label": "good", "boxes": [[0, 0, 1, int(name)]]} for name in names]


def run(stub, output, count, run=None, batch_size=4):
    names = [str(i) for i in range(count)]
    return run_prediction(names, stub.read, stub, output, run or {"model": "m"}, batch_size)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_killed_at_every_byte_of_the_journal_no_row_is_lost_or_doubled(tmp_path, suffix):
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    journal = tmp_path / f"out.{suffix}.journal"
    run(Stub(), whole, 12)
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), output, 12)
    content = journal.read_bytes()
    assert content.count(b"\n") == 1 + 8 and not output.exists()
    last_lines = content.rindex(b"\n", 0, -60)
    for length in range(0 if suffix == "jsonl" else last_lines, len(content) + 1):
        journal.write_bytes(content[:length])
        stub = Stub()
        summary = run(stub, output, 12)
        finished = max(content[:length].count(b"\n") - 1, 0)
        assert stub.scored == [str(i) for i in range(finished, 12) if i % 7 != 3]
        assert summary.images == 12 and summary.unreadable == 2
        assert output.read_bytes() == whole.read_bytes() and not journal.exists()
        output.unlink()


def test_a_machine_that_stopped_leaves_a_block_of_zeros(tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), output, 12)
    with (tmp_path / "out.jsonl.journal").open("ab") as file:
        file.write(b'{"path"' + bytes(100))
    assert run(Stub(), output, 12).images == 12
    assert [row["path"] for row in read_json_lines(output)] == [str(i) for i in range(12)]


def test_killed_between_table_and_the_end_of_the_run(tmp_path):
    output = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), output, 12)
    journal = (tmp_path / "out.csv.journal").read_bytes()
    run(Stub(), output, 12)
    table = output.read_bytes()
    (tmp_path / "out.csv.journal").write_bytes(journal)
    run(Stub(), output, 12)
    assert output.read_bytes() == table


def test_another_run_is_refused_and_the_journal_kept(tmp_path):
    output, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), output, 12)
    content = journal.read_bytes()
    with pytest.raises(ValueError, match="out.csv.journal: belongs .* that differs: model m there, other now"):
        run(Stub(), output, 12, run={"model": "other"})
    assert journal.read_bytes() == content
    assert run(Stub(), output, 12).images == 12


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_finished_table_is_found_and_not_scored_again(tmp_path, suffix):
    output, stub = tmp_path / f"out.{suffix}", Stub()
    summary = run(Stub(), output, 12)
    table = output.read_bytes()
    found = run(stub, output, 12)
    assert found.was_complete and not summary.was_complete and stub.scored == []
    assert dataclasses.replace(found, was_complete=False) == summary and summary.unreadable == 2
    assert output.read_bytes() == table


def test_a_finished_table_of_another_run_is_refused_and_kept(tmp_path):
    output, record = tmp_path / "out.csv", tmp_path / "out.csv.run.json"
    run(Stub(), output, 12)
    with pytest.raises(ValueError, match="out.csv: exists already, of a run that differs: model m there, other now; remove it"):
        run(Stub(), output, 12, run={"model": "other"})
    table = output.read_bytes()
    output.write_bytes(table + b"13,0.5\n")
    with pytest.raises(ValueError, match="out.csv: exists already; remove it"):
        run(Stub(), output, 12)
    output.write_bytes(table)
    record.unlink()
    with pytest.raises(ValueError, match="out.csv: exists already; remove it"):
        run(Stub(), output, 12)
    assert output.read_bytes() == table
    output.unlink()
    run(Stub(), output, 12, run={"model": "other"})
    assert run(Stub(), output, 12, run={"model": "other"}).was_complete


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


def test_a_run_that_ended_before_its_first_row_binds_nobody(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="0"), tmp_path / "out.csv", 12)
    assert (tmp_path / "out.csv.journal").exists()
    assert run(Stub(), tmp_path / "out.csv", 12, run={"model": "other"}).images == 12


@pytest.mark.parametrize("change", ["model", "setting", "folder", "new image", "changed image"])
def test_everything_rows_depend_on_is_part_of_the_run(pipe, folder, tmp_path, monkeypatch, change):
    output = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        patch.setattr("diffad.jobs.predict.write_table", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict(pipe, folder, output)
    settings = {}
    if change == "model":
        other = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
        other.calibrate(smooth_images(19, seed=5))
        pipe = other
    elif change == "setting":
        settings = {"masks": tmp_path / "masks"}
    elif change == "folder":
        folder = folder.rename(tmp_path / "moved")
    elif change == "new image":
        smooth_images(1, seed=0)[0].save(folder / "new.png")
    else:
        (folder / "z.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(ValueError, match="belongs to an unfinished run that differs"):
        predict(pipe, folder, output, **settings)


def test_pictures_of_one_run_lie_in_one_folder_wherever_it_goes_on(pipe, folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with monkeypatch.context() as patch:
        patch.setattr("diffad.jobs.predict.write_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(pipe, folder, tmp_path / "out.csv", masks=Path("masks"))
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(ValueError, match="differs: masks .*/here/masks there, .*/there/masks now"):
        predict(pipe, folder, tmp_path / "out.csv", masks=Path("masks"))
    assert predict(pipe, folder, tmp_path / "out.csv", masks=Path("../here/masks")).images == 6


def test_batch_size_may_change_when_a_run_goes_on(pipe, folder, tmp_path, monkeypatch):
    predict(pipe, folder, tmp_path / "whole.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr("diffad.jobs.predict.bounding_boxes", _fails_at(4, bounding_boxes))
        with pytest.raises(KeyboardInterrupt):
            predict(pipe, folder, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl.journal").read_bytes().count(b"\n") == 1 + 2
    predict(pipe, folder, tmp_path / "out.jsonl", batch_size=3)
    rows, expected = read_json_lines(tmp_path / "out.jsonl"), read_json_lines(tmp_path / "whole.jsonl")
    np.testing.assert_allclose(scores_of(rows), scores_of(expected), rtol=1e-5)
    assert rows == expected


def _fails_at(call, function):
    calls = []

    def counted(*args):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args)

    return counted


def test_processes_started_at_once_score_every_image_once(tmp_path):
    """Some start while others run or end: one runs from the first image to the last, the others are turned away or find it."""
    output, start = tmp_path / "out.jsonl", multiprocessing.get_context("fork")
    outcomes = start.SimpleQueue()
    barrier = start.Barrier(4)

    def attempt():
        barrier.wait()
        for _ in range(50):
            stub = Stub()
            try:
                kind = "found" if run(stub, output, 12).was_complete else "finished"
                outcomes.put((kind, len(stub.scored)))
            except ValueError as error:
                outcomes.put(("refused", str(error)))
            except BaseException as error:
                outcomes.put(("failed", repr(error)))

    processes = [start.Process(target=attempt) for _ in range(4)]
    for process in processes:
        process.start()
    found = [outcomes.get() for _ in range(4 * 50)]
    for process in processes:
        process.join()
    assert [outcome for outcome in found if outcome[0] not in ("found", "refused")] == [("finished", 10)]
    assert {scored for kind, scored in found if kind == "found"} <= {0}
    assert all("another process is writing it" in text for kind, text in found if kind == "refused")
    assert [row["path"] for row in read_json_lines(output)] == [str(i) for i in range(12)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.jsonl.lock", "out.jsonl", "out.jsonl.run.json"]


def test_a_run_that_starts_while_another_ends_is_turned_away(tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    close = Journal.__exit__

    def second_run(journal, *exception):
        close(journal, *exception)
        monkeypatch.undo()
        with pytest.raises(ValueError, match="another process is writing it"):
            run(Stub(), output, 12)

    monkeypatch.setattr(Journal, "__exit__", second_run)
    assert run(Stub(), output, 12).images == 12


def test_a_lock_that_ends_leaves_no_room_for_two(tmp_path):
    """A second process has opened the lock file before the first ends, a third comes after: one of them at most may run."""
    output = tmp_path / "out.csv"
    first = only_writer(output)
    first.__enter__()
    early = os.open(tmp_path / ".out.csv.lock", os.O_RDWR)
    first.__exit__(None, None, None)
    fcntl.flock(early, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(ValueError, match="out.csv: another process is writing it"), only_writer(output):
        pass
    os.close(early)
    with only_writer(output):
        pass


def test_memory_is_flat_over_100_000_rows(tmp_path, monkeypatch):
    names = [str(i) for i in range(100_000)]
    image = Image.new("RGB", (8, 8))
    levels = []

    def sampled(rows):
        for i, row in enumerate(rows):
            if i % 5000 == 0:
                levels.append(psutil.Process().memory_info().rss)
            yield row

    def score(batch, images):
        return list(sampled({"path": name, "score": 0.0, "label": "good"} for name in batch))

    monkeypatch.setattr("diffad.jobs.predict.write_table", lambda rows, path: write_table(sampled(rows), path))
    summary = run_prediction(names, lambda name: image, score, tmp_path / "out.parquet", {}, 100)
    assert summary.images == 100_000 and pq.read_metadata(tmp_path / "out.parquet").num_rows == 100_000
    assert len(levels) == 1000 + 20
    # All rows would be 40 MB; what is allowed is a chunk of the table in the making.
    assert max(levels) - levels[100] < 12e6


def test_bad_arguments_end_the_run_before_it_starts(pipe, folder, tmp_path):
    with pytest.raises(ValueError, match="must end in .csv, .jsonl, .parquet"):
        predict(pipe, folder, tmp_path / "out.txt")
    with pytest.raises(FileNotFoundError, match="missing"):
        predict(pipe, folder, tmp_path / "missing" / "out.csv")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        predict(pipe, tmp_path / "nowhere", tmp_path / "out.csv")
    with pytest.raises(DataError, match="lies in the folder of images"):
        predict(pipe, folder, tmp_path / "out.csv", masks=folder / "masks")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        predict(pipe, tmp_path / "empty", tmp_path / "out.csv")
    (folder / "z.bmp").write_bytes((folder / "z.png").read_bytes())
    with pytest.raises(DataError, match="z.bmp and z.png differ in their ending only"):
        predict(pipe, folder, tmp_path / "out.csv", masks=tmp_path / "masks")
    with pytest.raises(ValueError, match="not calibrated|calibrate"):
        predict(tiny_pipeline(), folder, tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "images"]
    (tmp_path / "out.csv").write_text("kept")
    with pytest.raises(ValueError, match="exists already"):
        predict(pipe, folder, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "kept"


def test_file_names_that_are_not_text_reach_the_table(tmp_path):
    name = b"\xff.png".decode("utf-8", "surrogateescape")

    class Output:
        image_scores, p_values, labels, masks = [1.0], [0.5], [True], [np.ones((2, 2), dtype=bool)]
        categories, false_alarm_rates = None, [0.05]

    run_prediction([name], lambda _: Image.new("RGB", (8, 8)), lambda n, _: rows_of(n, Output), tmp_path / "out.parquet", {}, 1)
    assert pq.read_table(tmp_path / "out.parquet")["path"].to_pylist() == ["\N{REPLACEMENT CHARACTER}.png"]


def test_boxes_are_those_of_connected_regions():
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:5, 3:7] = True
    mask[10:18, 20:30] = True
    mask[5, 7] = True  # touches the first at its corner
    assert bounding_boxes(mask) == [[20, 10, 30, 18], [3, 2, 8, 6]]
    assert bounding_boxes(np.zeros((4, 4), dtype=bool)) == []
    assert bounding_boxes(np.ones((4, 6), dtype=bool)) == [[0, 0, 6, 4]]


def test_the_digest_of_files_follows_their_names(folder):
    assert files_digest(folder, NAMES) != files_digest(folder, NAMES[:-1])
