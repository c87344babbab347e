"""Predictions of folders: rows and pictures as the pipeline gives them, whatever the files are; what belongs to a run."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from diffad.data import DataError
from diffad.imaging.decoding import ImageWarning
from diffad.imaging.regions import bounding_boxes
from diffad.jobs.predict import PredictionSettings, predict_folder
from diffad.jobs.table import SCHEMA, read_rows
from PIL import Image
from tiny_pipeline import category_images, smooth_images, tiny_pipeline

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
        patch.setattr("diffad.runtime.rows.bounding_boxes", _fails_at(4, bounding_boxes))
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


def test_names_that_are_long_or_not_text_reach_the_table(pipe, tmp_path):
    """Of 255 bytes, with a byte that is not UTF-8, and what a spreadsheet would run: each has its row, and its pictures."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["a" * 251 + ".png", os.fsdecode(b"\xff.png"), "=1+1.png"]
    for name, image in zip(names, smooth_images(3, seed=20), strict=True):
        image.save(folder / "image.png")
        (folder / "image.png").rename(folder / name)
    shown = sorted(name.replace("\udcff", "\N{REPLACEMENT CHARACTER}") for name in names)
    for suffix in ("csv", "jsonl", "parquet"):
        summary = predict(pipe, folder, tmp_path / f"out.{suffix}", maps=tmp_path / f"maps-{suffix}")
        assert (summary.images, summary.unreadable) == (3, 0)
        assert sorted(row["path"] for row in read_rows(tmp_path / f"out.{suffix}")) == shown
        assert len(list((tmp_path / f"maps-{suffix}").iterdir())) == 3
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert not [row for row in csv.DictReader(file) if row["path"].startswith("=")]


def test_a_single_image_file_gets_its_row(pipe, folder, tmp_path):
    summary = predict(pipe, folder / "b.png", tmp_path / "out.jsonl", masks=tmp_path / "masks")
    (row,) = read_json_lines(tmp_path / "out.jsonl")
    assert summary.images == 1 and row["path"] == "b.png" and row["label"] == "defective"
    assert (tmp_path / "masks/b.png").is_file()
    predict(pipe, folder / "sub/e.png", tmp_path / "broken.jsonl")
    assert "e.png" in read_json_lines(tmp_path / "broken.jsonl")[0]["error"]
    with pytest.raises(DataError, match="is the folder of the image"):
        predict(pipe, folder / "b.png", tmp_path / "other.jsonl", masks=folder)


def test_thresholds_are_in_the_table_and_in_its_record(pipe, folder, tmp_path):
    predict(pipe, folder, tmp_path / "out.jsonl")
    image, pixel = pipe.calibration.image_threshold(RATE), pipe.calibration.pixel_threshold(RATE)
    expected = {"false_alarm_rate": RATE, "image_threshold": image, "pixel_threshold": pixel}
    for row in read_json_lines(tmp_path / "out.jsonl"):
        assert {name: row[name] for name in expected} == (expected if row["error"] is None else dict.fromkeys(expected))
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert record["run"]["thresholds"] == [{"category": None, **expected}]
    assert SCHEMA.names[-4:] == ["error", "image_threshold", "pixel_threshold", "pages"]


def test_files_of_several_pages_have_one_row_that_says_so(pipe, tmp_path):
    """As the guide says: the first page is judged."""
    first, *others = smooth_images(3, seed=20, size=(40, 40))
    (tmp_path / "images").mkdir()
    first.save(tmp_path / "images/stack.tif", save_all=True, append_images=others)
    first.save(tmp_path / "images/single.tif")
    with pytest.warns(ImageWarning, match="stack.tif: holds 3 pages"):
        predict(pipe, tmp_path / "images", tmp_path / "out.jsonl")
    single, stack = read_json_lines(tmp_path / "out.jsonl")
    assert (single["pages"], stack["pages"]) == (1, 3) and stack["score"] == single["score"]


def test_every_category_has_its_thresholds_in_the_record(tmp_path):
    pipe = tiny_pipeline(("nut", "bolt"), weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate([*category_images(12, 4, 0), *category_images(19, 4, 1)], categories=["nut"] * 12 + ["bolt"] * 19)
    (tmp_path / "images").mkdir()
    category_images(1, 20, 1)[0].save(tmp_path / "images/a.png")
    predict(pipe, tmp_path / "images", tmp_path / "out.jsonl")
    (row,) = read_json_lines(tmp_path / "out.jsonl")
    recorded = {
        entry["category"]: entry for entry in json.loads((tmp_path / "out.jsonl.run.json").read_text())["run"]["thresholds"]
    }
    assert set(recorded) == {"nut", "bolt"} and row["category"] == "bolt"
    assert recorded["bolt"] == {name: row[name] for name in recorded["bolt"]}
    assert recorded["nut"]["image_threshold"] == pipe.calibration.image_threshold(RATE, 0)
