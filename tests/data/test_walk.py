"""Images below a folder: linked folders followed and circles cut, what systems put there left out, nothing left out unsaid."""

import os
from pathlib import Path

import pytest
from data_folders import save_image
from diffad import ImageError
from diffad.data import DataError, image_files, training_samples
from diffad.data.walk import SYSTEM_FOLDERS, child, subfolders

CASES = Path(__file__).parents[1] / "cases"


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in image_files(folder)]


def test_stored_case_of_a_file_server():
    assert names(CASES / "nas_folders") == ["im0.png"]
    assert [sample.name for sample in training_samples(CASES / "nas_folders")] == ["im0.png"]


@pytest.mark.parametrize(
    "name", sorted(SYSTEM_FOLDERS) + [".Trash-1000", ".Trashes", "@eaDir", "$RECYCLE.BIN", "System Volume Information"]
)
def test_folders_of_systems_are_left_out(tmp_path, name):
    save_image(tmp_path / "parts/a.png")
    save_image(tmp_path / f"parts/lot1/{name}/deep/b.png")
    save_image(tmp_path / f"parts/{name.upper()}/c.png")
    assert names(tmp_path / "parts") == ["a.png"]
    assert [path.name for path in subfolders(tmp_path / "parts")] == ["lot1"]


@pytest.mark.parametrize("name", ["@line", "#3", "$5", "~old", "trash", "lost", "MACOSX"])
def test_folders_of_users_are_not(tmp_path, name):
    save_image(tmp_path / name / "a.png")
    assert names(tmp_path) == [f"{name}/a.png"]


def test_a_system_folder_that_the_user_names_is_searched(tmp_path):
    save_image(tmp_path / "lost+found/a.png")
    assert names(tmp_path / "lost+found") == ["a.png"]


# Links


@pytest.fixture
def folder(tmp_path):
    """Two images, and beside the folder another one with an image."""
    for name in ("parts/a.png", "parts/lot/b.png", "other/c.png"):
        save_image(tmp_path / name)
    return tmp_path / "parts"


def link(path: Path, target: Path | str, is_folder: bool = True) -> None:
    try:
        path.symlink_to(target, target_is_directory=is_folder)
    except OSError:
        pytest.skip("no links here")


def test_linked_folders_and_files_are_followed(folder):
    link(folder / "linked", folder.parent / "other")
    link(folder / "d.png", folder.parent / "other/c.png", is_folder=False)
    assert names(folder) == ["a.png", "d.png", "linked/c.png", "lot/b.png"]
    assert [path.name for path in subfolders(folder)] == ["linked", "lot"]


def test_the_folder_itself_may_be_a_link(folder):
    link(folder.parent / "link", folder)
    assert names(folder.parent / "link") == ["a.png", "lot/b.png"]


@pytest.mark.parametrize("target", [".", "..", "../..", "lot"])
def test_circles_are_cut(folder, target):
    link(folder / "lot/again", os.path.relpath(folder / target, folder / "lot"))
    link(folder / "again", target)
    assert names(folder) == ["a.png", "lot/b.png"]


def test_two_links_to_one_folder_give_its_images_once_and_under_their_own_names(folder):
    link(folder / "1", folder.parent / "other")
    link(folder / "2", folder.parent / "other")
    link(folder / "0", folder / "lot")  # comes first in order, but is no folder of its own
    assert names(folder) == ["1/c.png", "a.png", "lot/b.png"]


def test_links_within_linked_folders_are_followed(folder):
    save_image(folder.parent / "third/d.png")
    link(folder.parent / "other/deeper", folder.parent / "third")
    link(folder / "linked", folder.parent / "other")
    assert names(folder) == ["a.png", "linked/c.png", "linked/deeper/d.png", "lot/b.png"]


def test_a_broken_link_is_listed_and_refused_when_it_is_read(folder):
    link(folder / "gone.png", "nowhere.png", is_folder=False)
    link(folder / "round.png", "round.png", is_folder=False)
    assert names(folder) == ["a.png", "gone.png", "lot/b.png", "round.png"]
    for sample in training_samples(folder, all_good=True):
        if sample.name in ("gone.png", "round.png"):
            with pytest.raises(ImageError, match=sample.name):
                sample.read()


def test_a_folder_that_can_not_be_listed_is_no_empty_one(folder, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "lot":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="lot: can't be listed .Permission denied"):
        image_files(folder)


# Names in any case


def test_a_child_is_found_in_any_case(tmp_path):
    (tmp_path / "Train/GOOD").mkdir(parents=True)
    assert child(tmp_path, "train", "good") == tmp_path / "Train/GOOD"
    assert child(tmp_path, "train", "bad") == tmp_path / "Train/bad"
    assert child(tmp_path, "test", "good") == tmp_path / "test/good"


def test_names_that_differ_in_case_only_are_refused(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "Good").mkdir(exist_ok=True)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("a file system that knows one case")
    with pytest.raises(DataError, match="Good and good differ in the case of their letters only"):
        child(tmp_path, "good")
