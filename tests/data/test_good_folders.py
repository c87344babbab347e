"""Folders of good images: images in several folders are refused unless they are said to be all good; names in any case."""

import pytest
from data_folders import FOLDERS, save_image
from diffad.data import DataError, category_samples, describe, evaluation_samples, find_layout, training_samples

SIBLINGS = [
    "normals anoms",
    "normal_dir abnormal_dir mask_dir",
    "gut schlecht",
    "iO niO",
    "pass fail",
    "0_good 1_defect",
    "good kratzer",
    "OK other",
    "2024-01-03 2024-01-04",
    "0 1",
]


def fill(folder, names: list[str], count: int = 3):
    for name in names:
        for i in range(count):
            save_image(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("siblings", SIBLINGS)
@pytest.mark.parametrize("above", ["", "day1/"])
def test_sibling_folders_are_refused_with_their_names(tmp_path, siblings, above):
    names = siblings.split()
    folder = fill(tmp_path / "parts", [above + name for name in names])
    for read in (training_samples, describe, find_layout):
        with pytest.raises(DataError) as error:
            read(folder)
        assert str(folder) in str(error.value)
        if not {"fail", "anoms", "nio", "schlecht"} & {name.lower() for name in names}:
            assert all(f"{above}{name} (3)" in str(error.value) for name in names)
            assert "--all_good" in str(error.value) and "\n" not in str(error.value)


def test_images_beside_a_folder_of_images_are_refused_alike(tmp_path):
    folder = fill(tmp_path / "parts", ["", "kratzer"])
    with pytest.raises(
        DataError, match=r"parts: its images lie in several folders: \. \(3\), kratzer \(3\); name the one with"
    ):
        training_samples(folder)


def test_many_folders_are_not_all_listed(tmp_path):
    folder = fill(tmp_path / "parts", [f"lot{i:02d}" for i in range(20)], count=1)
    with pytest.raises(DataError, match=r"lot07 \(1\) and 12 more; name"):
        training_samples(folder)


def test_folders_that_are_said_to_be_all_good_are_taken(tmp_path):
    folder = fill(tmp_path / "products/parts", ["2024-01-03", "2024-01-04/late", ""])
    assert len(training_samples(folder, all_good=True)) == 9
    assert describe(folder, all_good=True).training == 9
    assert find_layout(folder, all_good=True)[0].name == "folder of good images"
    assert len(category_samples(tmp_path / "products", ["parts"], all_good=True)) == 9


@pytest.mark.parametrize("other", ["bad", "a/ground_truth", "Test", "masks", "NOK"])
def test_what_is_named_like_defects_masks_or_a_split_is_refused_whatever_is_said(tmp_path, other):
    folder = fill(tmp_path / "parts", ["lot1", other])
    with pytest.raises(DataError, match=f"it holds {other},"):
        training_samples(folder, all_good=True)


def test_a_mask_beside_its_image_is_refused_whatever_is_said(tmp_path):
    folder = fill(tmp_path / "parts", ["a"])
    save_image(folder / "a/0_mask.png")
    with pytest.raises(DataError, match="a/0_mask.png looks like a mask"):
        training_samples(folder, all_good=True)


@pytest.mark.parametrize("inside", ["", "deep/deeper/"])
def test_one_folder_of_images_needs_no_word(tmp_path, inside):
    assert len(training_samples(fill(tmp_path / "parts", [inside]))) == 3


# Names in any case


def capitalised(folder):
    """Renames every folder of a dataset, the deepest first."""
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        path.rename(path.with_name(path.name.title() if path.name.islower() else path.name.upper()))
    return folder


@pytest.mark.parametrize("layout", [name for name in FOLDERS if name != "KolektorSDD"])
def test_layouts_are_recognised_in_any_case(tmp_path, layout):
    def lower(samples):
        return [(sample.name.lower(), sample.defect.lower(), sample.mask and sample.mask.name.lower()) for sample in samples]

    folder = FOLDERS[layout](tmp_path / "part")
    training, test = lower(training_samples(folder)), lower(evaluation_samples(folder))
    if layout == "VisA":
        (folder / "image_anno.csv").unlink()  # names the images as they are
        test = lower(evaluation_samples(folder))
    capitalised(folder)
    assert find_layout(folder)[0].name == layout
    assert lower(training_samples(folder)) == training
    assert sorted(lower(evaluation_samples(folder))) == sorted(test)


def test_two_cases_of_one_name_are_refused(tmp_path):
    folder = FOLDERS["MVTec AD"](tmp_path / "part")
    save_image(folder / "train/Good/9.png")
    if not (folder / "train/good/9.png").exists():
        with pytest.raises(DataError, match="train: Good and good differ in the case"):
            training_samples(folder)


def test_a_second_folder_of_good_test_images_is_no_defect_type(tmp_path):
    folder = FOLDERS["MVTec AD"](tmp_path / "part")
    save_image(folder / "test/Normal/9.png")
    with pytest.raises(DataError, match="test/Normal: lies beside .*test/good"):
        evaluation_samples(folder)
