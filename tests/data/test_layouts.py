"""Published layouts: recognised by structure, read as published, and never a defect among the training images."""

import shutil

import numpy as np
import pytest
from data_folders import FOLDERS, SIZE, save_image, save_mask, visa_split_table
from diffad.data import (
    LAYOUTS,
    DataError,
    evaluation_samples,
    find_layout,
    image_files,
    load_mask,
    split_held_out,
    training_samples,
)
from PIL import Image
from sklearn.model_selection import train_test_split


def names(samples):
    return [sample.name for sample in samples]


@pytest.fixture(params=FOLDERS)
def layout_folder(request, tmp_path):
    """Name of a layout and a folder that has it; the folder's name says nothing."""
    return request.param, FOLDERS[request.param](tmp_path / "part")


def test_every_layout_is_recognised_by_itself_alone(layout_folder):
    name, folder = layout_folder
    assert [layout.name for layout in LAYOUTS if layout.recognize(folder)] == [name]
    assert find_layout(folder)[0].name == name


def test_every_layout_gives_readable_images_of_distinct_names(layout_folder):
    _, folder = layout_folder
    training, test = training_samples(folder), evaluation_samples(folder)
    everything = names(training) + names(test)
    assert len(set(everything)) == len(everything)
    assert not any(sample.is_defective for sample in training)
    for sample in [*training, *test]:
        assert (folder / sample.name).is_file()
        assert sample.read().size == SIZE[::-1]
    for sample in test:
        assert load_mask(sample, SIZE).any() == sample.is_defective


def test_training_works_without_test_images_and_masks(layout_folder):
    name, folder = layout_folder
    expected = names(training_samples(folder))
    for path in ("test", "test_public", "ground_truth"):
        if (folder / path).is_dir() and name != "MVTec AD 2":
            shutil.rmtree(folder / path)
    assert names(training_samples(folder)) == expected


# Safeguards


def parts_with_defects(folder):
    """Every folder inside a dataset that holds an image which is not a good one."""
    good = {folder / s.name for s in [*training_samples(folder), *evaluation_samples(folder)] if not s.is_defective}
    inner = [path for path in folder.rglob("*") if path.is_dir()]
    return [path for path in inner if not good.issuperset(image_files(path))]


def test_no_part_of_a_dataset_with_other_than_good_images_can_be_trained_on(layout_folder):
    _, folder = layout_folder
    parts = parts_with_defects(folder)
    assert parts
    for part in parts:
        with pytest.raises(DataError, match=str(part)):
            training_samples(part)


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        ("MVTec AD", "train/good"),
        ("MVTec AD", "train"),
        ("MVTec AD", "test/good"),
        ("BTAD", "train/ok"),
        ("VisA", "Data/Images/Normal"),
    ],
)
def test_a_part_with_good_images_only_is_a_plain_folder(tmp_path, layout, part):
    folder = FOLDERS[layout](tmp_path / "part")
    assert len(training_samples(folder / part)) == len(image_files(folder / part))


def test_root_of_several_datasets_is_refused_with_their_names(tmp_path):
    FOLDERS["MVTec AD"](tmp_path / "data/screw")
    FOLDERS["BTAD"](tmp_path / "data/01")
    with pytest.raises(DataError, match=r"(?s)data: no known layout.*01 \(BTAD\), screw \(MVTec AD\): name one of them"):
        training_samples(tmp_path / "data")


def test_what_was_looked_for_is_listed(tmp_path):
    save_image(tmp_path / "part/test/000.png")
    with pytest.raises(DataError) as error:
        training_samples(tmp_path / "part")
    for layout in LAYOUTS:
        assert f"{layout.name}: {layout.structure}" in str(error.value)


def test_two_layouts_at_once_are_refused(tmp_path):
    folder = FOLDERS["BTAD"](FOLDERS["MVTec AD"](tmp_path / "part"))
    for read in (training_samples, evaluation_samples):
        with pytest.raises(DataError, match=r"several layouts: MVTec AD \(.*BTAD \("):
            read(folder)


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        (["bad/1.png"], "it holds bad,"),
        (["NG/1.png"], "it holds NG,"),
        (["a/defects/1.png"], "it holds a/defects,"),
        (["ground_truth/1.png"], "it holds ground_truth,"),
        (["a/train/1.png"], "it holds a/train,"),
        (["1.png", "1_mask.png"], "1_mask.png looks like a mask"),
        (["b/1.png", "b/1_GT.png"], "b/1_GT.png looks like a mask"),
    ],
)
def test_plain_folder_with_a_hint_of_defects_or_masks_is_refused(tmp_path, others, reason):
    save_image(tmp_path / "parts/a/0.png")
    assert len(training_samples(tmp_path / "parts")) == 1
    for other in others:
        save_image(tmp_path / "parts" / other)
    with pytest.raises(DataError, match=f"{tmp_path / 'parts'}: no known layout; {reason}"):
        training_samples(tmp_path / "parts")


def test_folder_of_defects_itself_is_refused(tmp_path):
    save_image(tmp_path / "Anomaly/1.png")
    with pytest.raises(DataError, match="by its name"):
        training_samples(tmp_path / "Anomaly")


def test_mask_like_name_alone_is_an_image(tmp_path):
    save_image(tmp_path / "parts/gas_mask.png")
    assert names(training_samples(tmp_path / "parts")) == ["gas_mask.png"]


def test_plain_folder_can_not_be_evaluated_on(tmp_path):
    save_image(tmp_path / "parts/1.png")
    with pytest.raises(DataError, match="no test images"):
        evaluation_samples(tmp_path / "parts")


@pytest.mark.parametrize("name", ["notes.txt", "image.png"])
def test_file_that_is_no_manifest_is_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=f"{name}: no known layout"):
        training_samples(tmp_path / name)


# MVTec


@pytest.mark.parametrize(("layout", "count"), [("MVTec LOCO AD", 2), ("MVTec AD 2", 3)])
def test_published_validation_images_are_held_out_whatever_the_fraction(tmp_path, layout, count):
    samples = training_samples(FOLDERS[layout](tmp_path / "part"))
    for fraction, seed in ((0.1, 0), (0.9, 1)):
        training, held_out = split_held_out(samples, fraction, seed)
        assert len(training) == 4 and len(held_out) == count
        assert all(name.startswith("train/good/") for name in names(training))
        assert all(name.startswith("validation/good/") for name in names(held_out))


def test_one_validation_image_is_too_few(tmp_path):
    folder = FOLDERS["MVTec LOCO AD"](tmp_path / "part")
    (folder / "validation/good/001.png").unlink()
    with pytest.raises(DataError, match="4 training and 1 validation images"):
        split_held_out(training_samples(folder), 0.5, seed=0)


def test_loco_masks_of_an_image_are_united_whatever_their_levels(tmp_path):
    good, logical, structural = evaluation_samples(FOLDERS["MVTec LOCO AD"](tmp_path / "part"))
    expected = np.zeros(SIZE, dtype=bool)
    expected[0:2, 3:9] = expected[6:9, 3:9] = True
    np.testing.assert_array_equal(load_mask(logical, SIZE), expected)
    assert load_mask(structural, SIZE).sum() == 6
    assert (good.defect, logical.defect, structural.defect) == ("good", "logical_anomalies", "structural_anomalies")


def test_loco_masks_of_different_sizes_are_refused(tmp_path):
    folder = FOLDERS["MVTec LOCO AD"](tmp_path / "part")
    Image.new("L", (9, 9), 255).save(folder / "ground_truth/logical_anomalies/000/001.png")
    with pytest.raises(DataError, match="000/001.png: mask of another size"):
        load_mask(evaluation_samples(folder)[1], SIZE)


def test_loco_image_without_masks_is_refused(tmp_path):
    folder = FOLDERS["MVTec LOCO AD"](tmp_path / "part")
    shutil.rmtree(folder / "ground_truth/logical_anomalies/000")
    with pytest.raises(DataError, match="test/logical_anomalies/000.png: no mask"):
        evaluation_samples(folder)


def test_ad2_leaves_private_images_out_and_says_so(tmp_path):
    folder = FOLDERS["MVTec AD 2"](tmp_path / "part")
    layout, _ = find_layout(folder)
    assert names(evaluation_samples(folder)) == ["test_public/bad/000_regular.png", "test_public/good/000_regular.png"]
    assert layout.notes(folder) == [
        f"{name}: 1 images without published labels are not used" for name in ("test_private", "test_private_mixed")
    ]


# VisA


def test_visa_takes_the_official_split_of_its_category(tmp_path):
    folder = FOLDERS["VisA"](tmp_path / "pcb9")
    visa_split_table(folder, test={3, 7, 11})
    assert names(training_samples(folder)) == [f"Data/Images/Normal/{i:03d}.JPG" for i in range(20) if i not in (3, 7, 11)]
    samples = evaluation_samples(folder)
    assert names(samples)[:3] == [f"Data/Images/Normal/{i:03d}.JPG" for i in (3, 7, 11)]
    assert [sample.defect for sample in samples] == ["good"] * 3 + ["melt,scratch", "bent"]


def test_visa_without_table_draws_the_same_ninety_percent_every_time(tmp_path):
    folder = FOLDERS["VisA"](tmp_path / "pcb9")
    training = names(training_samples(folder))
    test = [sample.name for sample in evaluation_samples(folder) if not sample.is_defective]
    assert len(training) == 18 and len(test) == 2 and not set(training) & set(test)
    moved = FOLDERS["VisA"](tmp_path / "elsewhere/pcb9")
    assert names(training_samples(moved)) == training
    assert "not the official split" in find_layout(folder)[0].notes(folder)[0]


def test_visa_table_of_other_categories_does_not_count(tmp_path):
    visa_split_table(FOLDERS["VisA"](tmp_path / "pcb9"), test={1})
    assert len(training_samples(FOLDERS["VisA"](tmp_path / "pcb8"))) == 18


def test_visa_image_of_the_table_that_is_missing_is_named(tmp_path):
    folder = FOLDERS["VisA"](tmp_path / "pcb9")
    visa_split_table(folder, test={1})
    (folder / "Data/Images/Normal/005.JPG").unlink()
    with pytest.raises(DataError, match="005.JPG: is in .*1cls.csv"):
        training_samples(folder)


def test_visa_mask_levels_are_kinds_of_defects_not_grades(tmp_path):
    mask = load_mask(evaluation_samples(FOLDERS["VisA"](tmp_path / "pcb9"))[2], SIZE)
    expected = np.zeros(SIZE, dtype=bool)
    expected[1:3, 2:8] = expected[6:9, 2:8] = True
    np.testing.assert_array_equal(mask, expected)


def test_visa_without_annotations_has_one_defect_type(tmp_path):
    folder = FOLDERS["VisA"](tmp_path / "pcb9")
    (folder / "image_anno.csv").unlink()
    assert {sample.defect for sample in evaluation_samples(folder)} == {"good", "anomaly"}


# BTAD


def test_btad_pairs_masks_of_other_suffixes(tmp_path):
    folder = FOLDERS["BTAD"](tmp_path / "03")
    samples = evaluation_samples(folder)
    assert [(sample.name, sample.defect) for sample in samples] == [
        ("test/ko/0000.bmp", "ko"),
        ("test/ko/0001.bmp", "ko"),
        ("test/ok/0000.bmp", "good"),
    ]
    assert [sample.mask.name for sample in samples[:2]] == [
        str(folder / f"ground_truth/ko/{name}") for name in ("0000.png", "0001.bmp")
    ]


# Kolektor


def test_kolektor_labels_decide_and_the_split_is_anomalibs(tmp_path):
    folder = FOLDERS["KolektorSDD"](tmp_path / "part")
    defective = [f"kos{item:02d}/Part3.jpg" for item in (1, 3, 5)]
    good = sorted(f"kos{item:02d}/Part{part}.jpg" for item in range(1, 6) for part in range(4))
    good = [name for name in good if name not in defective]
    training, test = train_test_split(good, train_size=0.8, random_state=42)
    assert names(training_samples(folder)) == sorted(training)
    assert names(evaluation_samples(folder)) == sorted(test) + defective


@pytest.mark.parametrize(
    ("layout", "truth", "message"),
    [
        ("KolektorSDD", "kos02/Part1_label.bmp", "kos02/Part1.jpg: no label Part1_label.bmp"),
        ("KolektorSDD2", "train/10004_GT.png", "train/10004.png: no 10004_GT.png"),
    ],
)
def test_kolektor_image_without_truth_is_refused(tmp_path, layout, truth, message):
    folder = FOLDERS[layout](tmp_path / "part")
    (folder / truth).unlink()
    with pytest.raises(DataError, match=message):
        training_samples(folder)


def test_kolektor2_leaves_defects_of_its_training_split_out_and_says_so(tmp_path):
    folder = FOLDERS["KolektorSDD2"](tmp_path / "part")
    assert names(training_samples(folder)) == [f"train/{i}.png" for i in (10000, 10002, 10003, 10004, 10005)]
    assert [sample.name for sample in evaluation_samples(folder) if sample.is_defective] == ["test/20000.png", "test/20002.png"]
    assert find_layout(folder)[0].notes(folder) == ["1 defective images of the training split are left out"]


def test_a_faint_label_is_a_defect(tmp_path):
    folder = FOLDERS["KolektorSDD2"](tmp_path / "part")
    save_mask(folder / "train/10004_GT.png", slice(4, 5), level=1)
    assert "train/10004.png" not in names(training_samples(folder))
