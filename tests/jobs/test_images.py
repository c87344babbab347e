"""Images in folders and in object stores: the same names in the same order, the same pixels, the same errors."""

import shutil

import numpy as np
import pytest
from diffad.data import DataError
from diffad.imaging.decoding import ImageError
from diffad.jobs.images import list_images, reader_of
from diffad.jobs.predict import PredictionSettings, predict_folder
from diffad.jobs.table import read_rows
from PIL import Image
from stub_model import load_stub, save_stub

# In an order that differs between names and paths, with what is no image of the user's.
NAMES = ["a/1.png", "a-b/2.png", "a.png", "b/c/3.PNG", "b/broken.png"]
LEFT_OUT = [".hidden.png", "a/.thumbnails/4.png", "@eaDir/5.png", "notes.txt"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    for i, name in enumerate([*NAMES, *LEFT_OUT]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            Image.new("RGB", (12, 10), (40 * i,) * 3).save(file, format="PNG")
    (folder / "b/broken.png").write_bytes(b"no image")
    return folder


def test_a_store_lists_what_a_folder_does(folder):
    local, stored = list_images(folder), list_images(folder.as_uri())
    assert local.names == stored.names == sorted(NAMES, key=lambda name: name.split("/"))
    assert local.digest == stored.digest
    assert (local.folder, stored.folder) == (str(folder), folder.as_uri())


@pytest.mark.parametrize("change", ["content", "name", "gone"])
def test_a_store_that_has_changed_has_another_digest(folder, change):
    before = list_images(folder.as_uri()).digest
    if change == "content":
        Image.new("RGB", (90, 90)).save(folder / "a.png")
    elif change == "name":
        (folder / "a.png").rename(folder / "c.png")
    else:
        (folder / "a.png").unlink()
    assert list_images(folder.as_uri()).digest != before


def test_an_address_may_name_one_image(folder):
    found = list_images(f"{folder.as_uri()}/b/c/3.PNG")
    assert (found.folder, found.names) == (f"{folder.as_uri()}/b/c", ["3.PNG"])


def test_stored_images_are_read_as_files_are(folder):
    local, stored = reader_of(str(folder)), reader_of(folder.as_uri())
    np.testing.assert_array_equal(*(np.asarray(reader.read("b/c/3.PNG")) for reader in (local, stored)))
    for name, message in {"b/broken.png": "b/broken.png: not a readable image", "gone.png": "gone.png: no such file"}.items():
        for reader in (local, stored):
            with pytest.raises(ImageError, match=message):
                reader.read(name)


def test_a_store_that_can_not_be_reached_says_nothing_of_an_image(folder, monkeypatch):
    class Away:
        def open_input_file(self, path):
            raise OSError("AWS Error NETWORK_CONNECTION")

    reader = reader_of(folder.as_uri())
    monkeypatch.setattr(reader, "files", Away())
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        reader.read("a.png")


@pytest.mark.parametrize("code", ["ACCESS_DENIED", "NO_SUCH_KEY"])
def test_an_image_that_may_not_be_read_is_that_images_error(folder, monkeypatch, code):
    """What pyarrow raises of S3: an OSError of no further kind."""

    class Forbidding:
        def open_input_file(self, path):
            raise OSError(f"When reading information for key 'a.png' in bucket 'parts': AWS Error {code} during HeadObject")

    reader = reader_of(folder.as_uri())
    monkeypatch.setattr(reader, "files", Forbidding())
    with pytest.raises(ImageError, match=f"a.png: can't be read .*{code}"):
        reader.read("a.png")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nothing://bucket/folder", "nothing://bucket/folder: can't be opened"),
        ("s3://key:secret@bucket/folder", "a password in it"),
        ("{folder}/none", "none: no images found"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(folder, address, message):
    with pytest.raises(DataError, match=message) as error:
        list_images(address.format(folder=folder.as_uri()))
    assert "secret" not in str(error.value)


def test_a_relative_folder_is_read_from_elsewhere_under_the_name_that_it_was_given(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path.parent)
    reader = reader_of("images", tmp_path)
    assert reader.read("a.png").size == (12, 10) and reader.pixels("a.png") == 120
    with pytest.raises(ImageError, match="^images/b/broken.png: not a readable image"):
        reader.read("b/broken.png")


def test_a_run_over_a_store_gives_the_rows_of_a_folder_and_knows_it_again(folder, tmp_path):
    pipe = load_stub(save_stub(tmp_path / "model"))
    tables = []
    for source in (folder, folder.as_uri()):
        output = tmp_path / f"{len(tables)}.parquet"
        summary = predict_folder(pipe, source, output, PredictionSettings(0.05), 2)
        assert (summary.images, summary.unreadable) == (5, 1)
        tables.append([{**row, "error": row["error"] and row["error"].replace(f"{folder}/", "")} for row in read_rows(output)])
    assert tables[0] == tables[1]
    assert predict_folder(pipe, folder.as_uri(), output, PredictionSettings(0.05), 2).was_complete
    shutil.copy(folder / "a/1.png", folder / "new.png")
    with pytest.raises(ValueError, match="of a run that differs: images"):
        predict_folder(pipe, folder.as_uri(), output, PredictionSettings(0.05), 2)
