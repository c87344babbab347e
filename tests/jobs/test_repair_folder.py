"""Repair of a folder: which files are written, and that former names work on."""

import numpy as np
import pytest
from diffad.jobs.repair_folder import repair_folder
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(21, seed=7), smoothing_sigma=1.0)
    return pipe


@pytest.fixture
def folder(tmp_path, pipe):
    """One good image, one defective one, and a file that is none."""
    folder = tmp_path / "parts"
    (folder / "lot").mkdir(parents=True)
    good = next(image for image in smooth_images(21, seed=7) if not pipe(image).is_defective[0])
    good.save(folder / "good.png")
    pixels = np.array(smooth_images(1, seed=8)[0])
    pixels[10:20, 12:22] = (255, 0, 255)
    Image.fromarray(pixels).save(folder / "lot" / "bad.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def files_below(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_repairs_and_changes_are_written_under_the_names_of_the_images(pipe, folder, tmp_path):
    output = tmp_path / "out"
    summary = repair_folder(pipe, folder, output)
    assert (summary.images, summary.changed, len(summary.errors)) == (3, 1, 1) and "broken.png" in summary.errors[0]
    names = ["good.png", "lot/bad.png"]
    assert files_below(output) == [f"{kind}/{name}" for kind in ("difference", "repaired") for name in names]
    expected = pipe.reconstruct([folder / name for name in names])
    for i, name in enumerate(names):
        repaired = np.asarray(Image.open(output / "repaired" / name))
        assert np.abs(repaired.astype(int) - np.asarray(expected.images[i], int)).max() <= 1
        difference = np.asarray(Image.open(output / "difference" / name))
        change = np.abs(repaired.astype(float) - np.asarray(Image.open(folder / name), float)).mean(axis=2)
        assert difference.dtype == np.uint8 and np.abs(difference - change).max() <= 0.5 + 1e-3


def test_trajectory_of_what_was_changed(pipe, folder, tmp_path):
    repair_folder(pipe, folder, tmp_path / "out", trajectory=True)
    assert files_below(tmp_path / "out" / "trajectory") == ["lot/bad.gif", "lot/bad.png"]


def test_the_former_name_of_the_trajectory_works_with_a_warning(pipe, folder, tmp_path):
    with pytest.warns(FutureWarning, match="film is now called trajectory"):
        repair_folder(pipe, folder, tmp_path / "out", film=True)
    assert files_below(tmp_path / "out" / "trajectory") == ["lot/bad.gif", "lot/bad.png"]


def test_the_former_name_of_the_category_works_with_a_warning(pipe, folder, tmp_path):
    with pytest.warns(FutureWarning, match="class_label is now called category"):
        assert repair_folder(pipe, folder, tmp_path / "out", class_label=None).images == 3


def test_images_of_which_too_little_is_left_are_named(pipe, folder, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "noise.png")
    summary = repair_folder(pipe, folder, tmp_path / "out")
    assert "noise.png" in summary.not_confident and "good.png" not in summary.not_confident
    assert repair_folder(pipe, folder, tmp_path / "paper", preset="gradient_descent").not_confident == []
