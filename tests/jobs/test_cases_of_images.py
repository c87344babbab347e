"""Runs over folders with files that others' programs choke on: every image has its row, and the run goes on."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from diffad.data import DataError
from diffad.imaging.decoding import ImageWarning
from diffad.jobs.predict import PredictionSettings, predict_folder
from diffad.jobs.recalibrate import calibration_images
from tiny_pipeline import smooth_images, tiny_pipeline

CASES = Path(__file__).parents[1] / "cases"
DAMAGED = sorted(path.name for path in (CASES / "damaged_images").iterdir())


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(19, seed=4))
    return pipe


@pytest.fixture
def rows(pipe, tmp_path):
    """Function that gives the rows of a folder's prediction by path."""

    def rows(folder: Path) -> dict[str, dict]:
        predict_folder(pipe, folder, tmp_path / "out.jsonl", PredictionSettings(0.1), batch_size=3)
        lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["path"]: row for row in map(json.loads, lines)}

    return rows


def test_damaged_images_have_rows_with_their_errors(rows, tmp_path):
    folder = shutil.copytree(CASES / "damaged_images", tmp_path / "images")
    for name, image in zip(("a.png", "z.png"), smooth_images(2, seed=9)):
        image.save(folder / name)
    found = rows(folder)
    assert list(found) == sorted(["a.png", *DAMAGED, "z.png"])
    for name, row in found.items():
        assert (row["error"] is None) == (name in ("a.png", "z.png")) == (row["score"] is not None)
        assert row["error"] is None or (name in row["error"] and "\n" not in row["error"])


def test_pages_that_are_not_judged_are_told_in_a_column_and_by_warnings(rows, tmp_path):
    folder = shutil.copytree(CASES / "multipage", tmp_path / "images")
    smooth_images(1, seed=9)[0].save(folder / "one.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = rows(folder)
    assert {name: row["pages"] for name, row in found.items()} == {"apng.png": 3, "one.png": 1, "stack.tif": 3}
    told = [str(warning.message) for warning in caught if warning.category is ImageWarning]
    assert [name in message for name, message in zip(("apng.png", "stack.tif"), sorted(told), strict=True)] == [True, True]


def test_folders_of_a_file_server_have_no_rows(rows):
    assert list(rows(CASES / "nas_folders")) == ["im0.png"]


def test_linked_folders_have_rows_and_broken_links_errors(rows, tmp_path):
    for folder, seed in (("images", 5), ("elsewhere", 6)):
        (tmp_path / folder).mkdir()
        smooth_images(1, seed)[0].save(tmp_path / folder / f"{folder}.png")
    try:
        (tmp_path / "images/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "images/linked/round").symlink_to(tmp_path / "images", target_is_directory=True)
        (tmp_path / "images/gone.png").symlink_to(tmp_path / "nowhere.png")
    except OSError:
        pytest.skip("no links here")
    found = rows(tmp_path / "images")
    assert list(found) == ["gone.png", "images.png", "linked/elsewhere.png"]
    assert [row["error"] is None for row in found.values()] == [False, True, True]


def test_calibration_on_several_folders_asks_whether_they_are_all_good(tmp_path):
    for lot in ("monday", "tuesday"):
        (tmp_path / lot).mkdir()
        smooth_images(1, seed=len(lot))[0].save(tmp_path / lot / "0.png")
    with pytest.raises(DataError, match=r"several folders: monday \(1\), tuesday \(1\); .*--all_good"):
        calibration_images(tmp_path)
    assert len(calibration_images(tmp_path, all_good=True)) == 2
