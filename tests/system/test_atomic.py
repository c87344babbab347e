"""atomic.py: a folder is the old one or the new one wherever the writer is killed, and damage is noticed on reading."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from diffad.system import atomic
from diffad.system.atomic import DIGEST, complete, discard_unfinished, write_text, writing
from diffad.system.disk_space import DiskFullError
from killed_writers import NEW, OLD, contents_of, write

SCRIPT = Path(__file__).with_name("killed_writers.py")


def run_killed_writers(what: str, folder: Path) -> dict[str, int]:
    done = subprocess.run([sys.executable, SCRIPT, what, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("existing", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path, existing):
    seen = run_killed_writers("existing" if existing else "none", tmp_path)
    assert seen["old"] > 10 and seen["new"] > 2 + 10 * existing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_while_an_interrupted_replacement_is_ended_does_no_harm(tmp_path):
    assert run_killed_writers("ending", tmp_path)["kills"] > 5


def test_files_of_the_block_replace_those_of_their_names_and_the_digest_covers_all(tmp_path):
    write(tmp_path / "model", OLD)
    write(tmp_path / "model", {"unet/config.json": "changed"})
    assert complete(tmp_path / "model")
    assert contents_of(tmp_path / "model") == {**OLD, "unet/config.json": "changed"}
    assert set(json.loads((tmp_path / "model" / DIGEST).read_text())["sha256"]) == set(OLD)


def test_an_error_in_the_block_changes_nothing(tmp_path):
    write(tmp_path / "model", OLD)
    for folder in ("model", "other"):
        with pytest.raises(KeyError), writing(tmp_path / folder) as unfinished:
            (unfinished / "index.json").write_text("new")
            raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert contents_of(tmp_path / "model") == OLD


@pytest.mark.parametrize("name", OLD)
def test_a_missing_or_changed_file_is_named(tmp_path, name):
    write(tmp_path, OLD)
    (tmp_path / name).write_text("odd")
    with pytest.raises(ValueError, match=f"{name}: is not as it was written"):
        complete(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: is missing"):
        complete(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"sha256": {"../x": "0"}}', '{"sha256": {"x": 1}}', '{"sha256": 3}'])
def test_a_damaged_digest_is_named(tmp_path, text):
    (tmp_path / DIGEST).write_text(text)
    with pytest.raises(ValueError, match=f"{DIGEST}: damaged"):
        complete(tmp_path)


def test_a_folder_without_a_digest_is_not_complete_but_readable(tmp_path):
    assert not complete(tmp_path) and not complete(tmp_path / "missing")


def test_a_living_writer_is_left_alone(tmp_path):
    for folder in (tmp_path / "new", tmp_path):
        with writing(folder) as unfinished:
            (unfinished / "x").write_text("x")
            discard_unfinished(folder)
            assert (unfinished / "x").is_file()
        assert (folder / "x").read_text() == "x"


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    write_text(tmp_path / "a.json", "new ü")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new ü"


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path):
    write(tmp_path / "model", OLD)
    with pytest.raises(DiskFullError, match=r"model: takes .* GiB, and .* are free on its disk"):
        write(tmp_path / "model", NEW, size=1 << 60)
    for error in (OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")):
        full = pytest.raises(DiskFullError, match=r"model: the disk is full; this takes 2 MiB")
        with full, writing(tmp_path / "model", size=1 << 21) as unfinished:
            (unfinished / "index.json").write_text("new")
            raise error
    assert contents_of(tmp_path / "model") == OLD


class Windows:
    """Files that other programs hold open can't be replaced, unless they may be renamed; nor folders that hold one."""

    def __init__(self, monkeypatch, folder):
        self.held, self.renamable, self.refused = set(), False, 0
        self.replace, self.rename = os.replace, os.rename
        monkeypatch.setattr(atomic, "WINDOWS", True)
        monkeypatch.setattr(atomic, "PATIENCE", 0.3)
        monkeypatch.setattr(os, "replace", self._replace)
        monkeypatch.setattr(os, "rename", self._rename)

    def _refuse(self):
        self.refused += 1
        raise PermissionError(13, "The process cannot access the file because it is being used by another process")

    def _replace(self, source, target):
        if target in self.held or (source in self.held and not self.renamable):
            self._refuse()
        self.replace(source, target)
        self.held -= {source}

    def _rename(self, source, target):
        if any(path.is_relative_to(source) for path in self.held):
            self._refuse()
        self.rename(source, target)


def test_on_windows_a_file_that_is_open_elsewhere_makes_room(tmp_path, monkeypatch):
    write(tmp_path / "model", OLD)
    windows = Windows(monkeypatch, tmp_path)
    windows.held, windows.renamable = {tmp_path / "model/unet/weights"}, True
    write(tmp_path / "model", NEW, whole=True)
    assert windows.refused and contents_of(tmp_path / "model") == NEW


def test_on_windows_a_file_that_stays_open_is_named_and_the_folder_is_ended_later(tmp_path, monkeypatch):
    write(tmp_path / "model", OLD)
    windows = Windows(monkeypatch, tmp_path)
    windows.held = {tmp_path / "model/unet/weights"}
    with pytest.raises(OSError, match=r"model: saving it was interrupted.*unet/weights: is open in another program"):
        write(tmp_path / "model", NEW, whole=True)
    with pytest.raises(OSError, match="is open in another program"):
        complete(tmp_path / "model")
    windows.held = set()
    assert complete(tmp_path / "model") and contents_of(tmp_path / "model") == NEW


def test_on_windows_a_scanner_is_waited_for(tmp_path, monkeypatch):
    windows = Windows(monkeypatch, tmp_path)
    rename = atomic._rename_folder

    def scanned(source, target):
        windows.held = {next(source.iterdir())}
        sleep = atomic.time.sleep
        monkeypatch.setattr(atomic.time, "sleep", lambda seconds: (windows.held.clear(), sleep(seconds)))
        rename(source, target)

    monkeypatch.setattr(atomic, "_rename_folder", scanned)
    write(tmp_path / "model", NEW)
    assert windows.refused == 1 and contents_of(tmp_path / "model") == NEW
