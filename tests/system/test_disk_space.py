"""disk_space.py: space is taken before it is written to, and a full disk is one line."""

import errno
import os

import pytest
from diffad.system.disk_space import DiskFullError, check_space, is_disk_full, reserve


@pytest.mark.parametrize("system", ["with fallocate", "without", "file system without"])
def test_reserved_files_have_their_size_and_keep_what_they_hold(tmp_path, monkeypatch, system):
    path = tmp_path / "array"
    path.write_bytes(b"header")
    if system == "without":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif system == "file system without":
        monkeypatch.setattr(os, "posix_fallocate", _failing(errno.EOPNOTSUPP), raising=False)
    reserve(path, 3_000_000)
    assert path.read_bytes() == b"header" + bytes(3_000_000 - 6)
    if hasattr(path.stat(), "st_blocks"):
        assert path.stat().st_blocks * 512 >= 3_000_000
    reserve(path, 10)
    assert path.stat().st_size == 3_000_000


def test_too_little_space_is_one_line_naming_file_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", _failing(errno.ENOSPC), raising=False)
    with pytest.raises(DiskFullError, match=r"array: takes 5 GiB, and .* are free on its disk$"):
        reserve(tmp_path / "array", 5 << 30)
    assert not (tmp_path / "array").exists()
    check_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(DiskFullError, match=r"not/yet: takes 1.05e\+06 GiB"):
        check_space(tmp_path / "not" / "yet", 1 << 50)


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", _failing(errno.EIO), raising=False)
    with pytest.raises(OSError, match="made up") as error:
        reserve(tmp_path / "array", 100)
    assert not isinstance(error.value, DiskFullError) and not is_disk_full(error.value, tmp_path)


def _failing(number: int):
    def fail(*_):
        raise OSError(number, "made up")

    return fail
