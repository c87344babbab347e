"""describe(): counts, sizes, held-out images, and every warning shown by a source that deserves it and by no other."""

import re
import shutil

import numpy as np
import pytest
from data_folders import FOLDERS, SIZE, mvtec_ad, save, save_image, save_mask
from diffad.data import DataError, describe
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """MVTec layout with enough good images for every guarantee at a held-out half."""
    folder = mvtec_ad(tmp_path / "part")
    for i in range(4, 44):
        save_image(folder / f"train/good/{i:03d}.png")
    return folder


def lines(source, **options) -> dict[str, str]:
    """Rendered text by row; warnings are joined."""
    rows = {}
    for line in str(describe(source, **options)).splitlines():
        label, text = line[:14].strip(), line[14:]
        rows[label] = f"{rows[label]}\n{text}" if label in rows else text
    return rows


def test_sound_folder_is_described_without_warnings(folder):
    assert lines(folder, held_out_fraction=0.5) == {
        "source": str(folder),
        "layout": "MVTec AD: train/good, test/good, test/<defect> and ground_truth/<defect>/<name>_mask.png",
        "training": "44 good images",
        "held out": "22, drawn from them; 22 remain to train on",
        "false alarms": "held-out images guarantee 5.0% at best: 10% yes, 5% yes, 1% no (needs 123)",
        "test": "1 good, 1 defective: hole 1",
        "masks": "1 of 1 defective images",
        "size": "16x12 pixels",
        "colour": "colour",
        "unreadable": "none",
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_every_layout_is_named(tmp_path, name):
    description = describe(FOLDERS[name](tmp_path / "part"))
    assert description.layout == name
    assert not description.images.unreadable and description.training and description.test


def test_published_validation_images_are_those_held_out(tmp_path):
    rows = lines(FOLDERS["MVTec AD 2"](tmp_path / "part"))
    assert rows["training"] == "7 good images"
    assert rows["held out"] == "3, the dataset's validation images; 4 remain to train on"
    assert "that takes 21 validation images" in rows["warning"]


def test_too_few_images_say_how_many_it_takes(folder):
    assert (
        lines(folder)["warning"]
        == "too few good images for a guaranteed false-alarm rate of 5%: that takes about 140 good images"
    )


def test_three_images_can_not_be_trained_on(tmp_path):
    for i in range(3):
        save_image(tmp_path / f"parts/{i}.png")
    rows = lines(tmp_path / "parts")
    assert rows["held out"] == "none: too few images to split"
    assert "training would stop: only 3 good images" in rows["warning"]
    assert rows["test"] == "none: can train and predict, but not evaluate"


def test_sizes_and_colour_are_counted(folder):
    grey = np.random.default_rng(0).integers(0, 256, size=(24, 32), dtype=np.uint8)
    save(folder / "train/good/000.png", grey)
    save(folder / "train/good/001.png", np.stack([255 - grey] * 3, axis=-1))
    rows = lines(folder, held_out_fraction=0.5)
    assert set(rows["size"].removesuffix(" pixels").split(", ")) == {"16x12 (44 images)", "32x24 (2 images)"}
    assert rows["colour"] == "44 in colour, 2 grey"
    assert rows["warning"] == "2 image sizes: parts may appear at different scales"
    save(folder / "train/good/002.png", np.zeros((12, 40), dtype=np.uint8))
    save(folder / "train/good/003.png", np.zeros((10, 40), dtype=np.uint8))
    rows = lines(folder, held_out_fraction=0.5)
    assert rows["size"] == "width 16 to 40 (median 16), height 10 to 24 (median 12) pixels"
    assert (
        rows["warning"] == "4 image sizes of different shape: each is stretched to the model's square, so parts are distorted"
    )


def test_copies_are_found_by_content_whatever_the_file(folder):
    with Image.open(folder / "train/good/007.png") as image:
        image.save(folder / "test/hole/000.png", compress_level=0)
        image.save(folder / "train/good/copy.bmp")
    warning = lines(folder, held_out_fraction=0.5)["warning"].splitlines()
    assert warning == [
        "1 test image also among the training images: test/hole/000.png (defective) = train/good/007.png",
        "1 training image the same as another, so held-out ones may be known: train/good/copy.bmp = train/good/007.png",
    ]


def test_unreadable_files_are_all_named(folder):
    (folder / "train/good/005.png").write_bytes(b"no image")
    (folder / "test/good/000.png").write_bytes((folder / "test/good/000.png").read_bytes()[:200])
    (folder / "ground_truth/hole/000_mask.png").write_bytes(b"no mask")
    rows = lines(folder, held_out_fraction=0.5)
    for name in ("train/good/005.png", "test/good/000.png", "ground_truth/hole/000_mask.png"):
        assert str(folder / name) in rows["unreadable"]
    assert "training or evaluation would stop at 3 unreadable files" in rows["warning"]


def test_doubtful_masks_are_counted(folder):
    for i in range(1, 4):
        save_image(folder / f"test/hole/{i:03d}.png")
    save_mask(folder / "ground_truth/hole/001_mask.png", level=0)
    save(folder / "ground_truth/hole/002_mask.png", np.eye(SIZE[0], SIZE[1] + 1, dtype=np.uint8) * 255)
    rows = lines(folder, held_out_fraction=0.5)
    assert rows["masks"] == "3 of 4 defective images"
    assert rows["warning"].splitlines() == [
        "evaluation would stop: 1 defective image without a mask, others with one",
        "evaluation would stop: 1 mask of another size than the image",
        "evaluation would stop: 1 defective image with a blank mask",
    ]


def test_without_masks_there_is_no_warning(folder):
    shutil.rmtree(folder / "ground_truth")
    rows = lines(folder, held_out_fraction=0.5)
    assert rows["masks"] == "none: evaluation gives image metrics only" and "warning" not in rows


def test_what_would_stop_evaluation_does_not_stop_the_description(folder):
    save_mask(folder / "ground_truth/hole/009_mask.png")
    rows = lines(folder, held_out_fraction=0.5)
    assert "009_mask.png: mask without an image" in rows["warning"] and rows["training"] == "44 good images"
    shutil.rmtree(folder / "test/hole")
    shutil.rmtree(folder / "ground_truth")
    assert lines(folder, held_out_fraction=0.5)["warning"] == "evaluation would stop: all test images are good"


def test_unknown_layout_is_refused(tmp_path):
    save_image(tmp_path / "part/test/1.png")
    with pytest.raises(DataError, match="no known layout"):
        describe(tmp_path / "part")


def test_groups_count_in_the_guarantee_and_the_remedy(tmp_path):
    rows = lines(FOLDERS["KolektorSDD"](tmp_path / "part", items=8))
    assert re.fullmatch(r"\d+ in 2 groups, drawn from them; \d+ remain to train on", rows["held out"])
    assert rows["false alarms"].startswith("held-out groups guarantee 50.0% at best: 10% no (needs 10), 5% no")
    assert "too few good groups of images" in rows["warning"] and "about 140 good groups of images" in rows["warning"]


def test_doubtful_images_are_told(folder):
    dark = np.random.default_rng(0).integers(0, 4096, SIZE, dtype=np.uint16)
    save(folder / "train/good/000.png", dark)
    pages = [Image.fromarray(dark.astype(np.uint8))] * 3
    pages[0].save(folder / "train/good/pages.tif", save_all=True, append_images=pages[1:])
    save(folder / "ground_truth/hole/000_mask.png", 255 - 255 * np.eye(*SIZE, dtype=np.uint8))
    warning = lines(folder, held_out_fraction=0.5)["warning"]
    assert "train/good/000.png: 16-bit image with no level above" in warning
    assert "train/good/pages.tif: holds 3 pages" in warning
    assert "hole/000_mask.png: marks 94% of the image as defective and looks inverted" in warning
    for i in range(10):
        save(folder / f"train/good/{i:03d}.png", dark + np.uint16(i))
    assert "7 more images or masks with such warnings" in lines(folder, held_out_fraction=0.5)["warning"]
