"""What the web app says of many images, and which of the files that it gets it reads."""

import csv
import shutil
import zipfile

import numpy as np
import pytest
from app_images import part
from diffad import ImageError
from diffad.app import batch, inspected_image
from diffad.app.batch import BatchRow
from diffad.app.uploads import read_upload, uploaded_samples
from diffad.system.text import original_text
from PIL import Image

RATE = 0.1


def test_errors_name_the_file_and_not_where_the_server_keeps_it(files):
    with pytest.raises(ImageError, match=r"^text\.png: not a readable image"):
        read_upload(files / "text.png")


def test_images_of_files_and_archives_have_distinct_names(files):
    with zipfile.ZipFile(files / "parts.zip", "w") as archive:
        for name in ("a/1.png", "b/1.PNG"):
            archive.write(files / "good.png", name)
        for name in ("notes.txt", "a/.hidden.png", "__MACOSX/1.png", "../1.png"):
            archive.writestr(name, "no image")
    (files / "again").mkdir()
    shutil.copy(files / "good.png", files / "again")
    samples = uploaded_samples([files / "good.png", files / "again/good.png", files / "parts.zip"])
    assert [sample.name for sample in samples] == ["good.png", "good (2).png", "parts.zip/a/1.png", "parts.zip/b/1.PNG"]
    assert all(sample.read().tobytes() == part(100).tobytes() for sample in samples)


def test_a_file_that_is_no_archive_costs_its_own_row_only(pipe, files):
    samples = uploaded_samples([files / name for name in ("broken.zip", "good.png", "broken.zip")])
    rows, _ = batch.inspect_files(pipe, samples, RATE, files / "overlays.zip")
    assert [row.path for row in rows] == ["good.png", "broken.zip", "broken (2).zip"] and rows[0].label
    assert all(row.error == f"{row.path}: not a readable zip archive; pack it anew" for row in rows[1:])


def test_images_beyond_the_limit_are_refused_before_they_are_decoded(files):
    image = Image.new("RGB", (1000, 1001))
    image.save(files / "large.png")
    with zipfile.ZipFile(files / "parts.zip", "w") as archive:
        archive.write(files / "large.png", "large.png")
    assert read_upload(files / "large.png", 1_001_000).size == image.size
    for sample in uploaded_samples([files / "large.png", files / "parts.zip"], 1_000_000):
        with pytest.raises(ImageError, match=rf"^{sample.name}: 1\.0 megapixels, more than the 1 that are taken"):
            sample.read()


def test_pixels_are_known_before_anything_is_decoded(files):
    Image.new("RGB", (1000, 1001)).save(files / "large.png")
    with zipfile.ZipFile(files / "parts.zip", "w") as archive:
        archive.write(files / "large.png", "large.png")
        archive.write(files / "text.png", "text.png")
    samples = uploaded_samples([files / "large.png", files / "parts.zip", files / "broken.zip"])
    assert [sample.pixels() for sample in samples] == [1_001_000, 1_001_000, 0, 0]


def test_members_of_archives_may_have_any_name(files):
    names = ["n" * 255 + ".png", "\N{SNOWMAN}.png", "=1.png", "C:\\parts\\1.png", "a/" * 50 + "1.png"]
    with zipfile.ZipFile(files / "parts.zip", "w") as archive:
        for name in names:
            archive.write(files / "good.png", name)
    samples = uploaded_samples([files / "parts.zip"])
    assert len(samples) == len(names) and all(sample.read().size == (48, 32) for sample in samples)


def test_damaged_archives_give_images_or_errors_that_name_them(files):
    with zipfile.ZipFile(files / "parts.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.write(files / "good.png", f"{i}.png")
    whole, rng = (files / "parts.zip").read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        (files / "parts.zip").write_bytes(damaged[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.2 else damaged)
        for sample in uploaded_samples([files / "parts.zip"]):
            try:
                sample.read()
            except ImageError as error:
                assert str(error).startswith("parts.zip")


def test_batch_is_sorted_complete_and_scored_as_one_by_one(pipe, files):
    with zipfile.ZipFile(files / "parts.zip", "w") as archive:
        archive.write(files / "hole.png", "holes/hole.png")
        archive.writestr("bad.png", "no image")
        archive.writestr("damaged.png", (files / "good.png").read_bytes())
    packed = (files / "parts.zip").read_bytes()
    position = packed.rindex(b"IDAT") + 20  # stored without compression: the last image's pixels
    (files / "parts.zip").write_bytes(packed[:position] + bytes([packed[position] ^ 255]) + packed[position + 1 :])

    samples = uploaded_samples([files / name for name in ("good.png", "parts.zip", "text.png", "other.tif")])
    progress = []
    rows, gallery = batch.inspect_files(
        pipe, samples, RATE, files / "overlays.zip", on_progress=lambda *counts: progress.append(counts)
    )
    assert [row.path for row in rows[3:]] == ["parts.zip/bad.png", "parts.zip/damaged.png", "text.png"]
    assert all(row.label is None and row.score is None and row.error.startswith(row.path) for row in rows[3:])
    assert progress == [(6, 6)]
    scores = {
        name: float(pipe(path).image_scores[0])
        for name, path in {
            "parts.zip/holes/hole.png": files / "hole.png",
            "good.png": files / "good.png",
            "other.tif": files / "other.tif",
        }.items()
    }
    found = {row.path: row.score for row in rows[:3]}
    assert found == pytest.approx(scores, rel=1e-4)
    assert [row.score for row in rows[:3]] == sorted(found.values(), reverse=True)
    threshold = pipe.calibration.image_threshold(RATE)
    assert all((row.label == "defective") == (row.score > threshold) for row in rows[:3])
    assert [caption for _, caption in gallery] == [f"{row.score:.2f} {row.path.removeprefix('parts.zip/')}" for row in rows[:3]]

    with zipfile.ZipFile(files / "overlays.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.overlay.png" for name in scores)
        with archive.open("parts.zip/holes/hole.png.overlay.png") as file:
            assert Image.open(file).size == (48, 32)

    batch.write_csv(rows, files / "table.csv")
    with (files / "table.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [line["path"] for line in table] == [row.path for row in rows]
    assert float(table[0]["score"]) == rows[0].score and table[-1]["score"] == ""


def test_a_long_batch_lets_others_take_their_turn(pipe, files):
    class Turn:
        taken = depth = 0

        def __enter__(self):
            self.taken, self.depth = self.taken + 1, self.depth + 1
            assert self.depth == 1

        def __exit__(self, *_):
            self.depth -= 1

    turn = Turn()

    samples = uploaded_samples([files / "good.png"] * (batch.BATCH_SIZE + 1))
    batch.inspect_files(pipe, samples, RATE, files / "overlays.zip", turn=turn)
    assert turn.taken > 1 and turn.depth == 0


def test_summary_counts():
    rows = [BatchRow("a", 3.0, 0.1, "defective"), BatchRow("b", 1.0, 0.5, "good"), BatchRow("c", error="c: damaged")]
    text = batch.summary(rows, RATE)
    assert "1 of 3 defective" in text and "1 good, at 10 %" in text and "1 could not be read" in text
    assert inspected_image.GOOD in batch.summary(rows[1:2], RATE)
    unknown = batch.summary([*rows, BatchRow("d", 9.0, 0.1, "unknown")], RATE)
    assert "1 of 4 defective" in unknown and "1 of a product that the model has never seen" in unknown


def test_no_cell_of_the_table_is_run_by_a_spreadsheet(files):
    rows = [BatchRow("=1+1.png", -3.0, 0.1, "good"), BatchRow("+x.png", error="@x: damaged")]
    batch.write_csv(rows, files / "table.csv")
    with (files / "table.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(line["score"] or "nan") for line in table][0] == -3
    texts = [line[name] for line in table for name in ("path", "label", "error")]
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]
    assert [original_text(line["path"]) for line in table] == ["=1+1.png", "+x.png"]
