"""Folders and files that are written whole or not at all, whatever is killed, loses its power or fills the disk meanwhile.

    with writing("model") as unfinished:  # a folder of its own, on the same disk
        pipe.unet.save_pretrained(unfinished / "unet")
        ...
    # Now all of it is in "model", or, where the block was left by an error or a kill, nothing is changed there.

    complete("model")  # before reading: ends what a kill cut off, and compares every file with the digest
    loaded = ...

What is written is synced to the disk, then a digest over all files is written, then everything takes its place: a new folder
by one rename; files of an existing folder one by one, after one rename to `.complete` has decided that they will. Whoever
finds `.complete` moves what is left of it. Other files of the folder stay.

Pure file operations, which import none of the package.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .disk_space import DiskFullError, check_space, in_units, is_disk_full
from .file_digest import file_digest

DIGEST = "digest.json"
COMPLETE = ".complete"  # files that are decided on and not yet in their places
UNFINISHED = ".unfinished-"  # begins the names of folders that are being written
LOCK = ".lock"
REPLACED = ".replaced-"  # begins the names of files that make room and could not be removed
WINDOWS = os.name == "nt"  # where open files can't be replaced, and no folder that holds one be renamed
PATIENCE = 5.0  # seconds for which Windows' scanners and indexers may hold a file open


@contextmanager
def writing(folder: str | Path, whole: bool = False, size: int = 0) -> Iterator[Path]:
    """Gives a folder to write to, whose files take their places in `folder` together when the block ends without an error.

    Args:
        folder: new or existing. Files of an existing one are replaced by those of the same name, all others stay.
        whole: the new files are all that belongs together: files of an earlier digest that are not among them are removed.
        size: bytes that will be written, if known: refused before anything is written where the disk has less.

    Raises:
        DiskFullError: if the disk is full; nothing is changed then.
        OSError: if on Windows another program keeps a file open; whatever opens or writes the folder next tries again.
    """
    folder = Path(folder)
    if folder.is_dir():
        finish(folder)
        scratch = folder / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = folder.parent / f".{folder.name}{UNFINISHED}{uuid.uuid4().hex[:8]}"
    discard_unfinished(folder)
    check_space(folder, size)
    with _alive(scratch):
        try:
            scratch.mkdir()
            yield scratch
            _write_digest(scratch, {} if whole else _read_digest(folder))
            _commit(scratch, folder)
        except Exception as error:
            if is_disk_full(error, folder.parent):
                raise DiskFullError(f"{folder}: the disk is full{f'; this takes {in_units(size)}' if size else ''}") from error
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def complete(folder: str | Path, without: Collection[str] = ()) -> bool:
    """Makes a folder ready to be read: ends what a kill cut off, then compares all files that the digest lists with it.

    Args:
        without: names of files that are not needed, and not looked at.

    Returns:
        Whether there is a digest; folders without one were not written by [`writing`].

    Raises:
        ValueError: naming the first file that is missing or not as it was written.
        OSError: if an interrupted replacement can't be ended here.
    """
    folder = Path(folder)
    finish(folder)
    entries = _read_digest(folder)
    for name, expected in entries.items():
        path = folder / name
        if name in without:
            continue
        if not path.is_file():
            raise ValueError(f"{path}: is missing, though {folder / DIGEST} lists it; copy the folder anew, or save it again")
        if file_digest(path) != expected:
            raise ValueError(f"{path}: is not as it was written ({folder / DIGEST}); copy the folder anew, or save it again")
    return bool(entries)


def finish(folder: str | Path) -> None:
    """Puts files into their places that a kill left in `.complete`; without any, does nothing."""
    folder = Path(folder)
    waiting = folder / COMPLETE
    if not waiting.is_dir():
        return
    try:
        # The digest is moved last: until then it tells what the former one listed in addition.
        if (waiting / DIGEST).is_file():
            for name in _files(waiting):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                _replace(waiting / name, folder / name)
            for name in _read_digest(folder).keys() - _read_digest(waiting).keys():
                (folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # holds other files, too
                    (folder / name).parent.rmdir()
            _sync_folders(folder, {(folder / name).parent for name in _read_digest(waiting)})
            _replace(waiting / DIGEST, folder / DIGEST)
            _sync_folders(folder, set())
        shutil.rmtree(waiting)
        discard_unfinished(folder)
    except OSError as error:
        raise OSError(f"{folder}: saving it was interrupted and can't be ended here: {error}") from error
    for path in folder.rglob(f"{REPLACED}*"):
        with suppress(OSError):  # still open in another program
            path.unlink()


def discard_unfinished(folder: str | Path) -> None:
    """Removes what killed writers left unfinished of a folder, and of folders in it; a writer that lives is left alone."""
    folder = Path(folder)
    found = [path for path in _entries(folder) if path.name.startswith(".") and UNFINISHED in path.name]
    found += [path for path in _entries(folder.parent) if path.name.startswith(f".{folder.name}{UNFINISHED}")]
    for scratch in {Path(str(path).removesuffix(LOCK)) for path in found}:
        with suppress(Timeout, OSError), _alive(scratch, timeout=0) as lock:
            if lock.is_locked:
                shutil.rmtree(scratch, ignore_errors=True)


def remove_folder(folder: str | Path) -> None:
    """Removes a folder: a kill leaves all of it, or nothing under its name."""
    folder = Path(folder)
    scratch = folder.parent / f".{folder.name}{UNFINISHED}{uuid.uuid4().hex[:8]}"
    with _alive(scratch):
        _rename_folder(folder, scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file in UTF-8, whole or not at all.

    Raises:
        DiskFullError: if the disk is full; a former file of that name stays.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}{UNFINISHED}{uuid.uuid4().hex[:8]}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _replace(scratch, path)
        _sync_folders(path.parent, set())
    except OSError as error:
        if is_disk_full(error, path.parent):
            raise DiskFullError(f"{path}: the disk is full; this takes {in_units(len(text))}") from error
        raise
    finally:
        scratch.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Makes new names in a folder last."""
    _sync_folders(Path(folder), set())


def _commit(scratch: Path, folder: Path) -> None:
    """Decides that a finished folder counts; from here on a kill is mended by going forward."""
    if not folder.exists():
        with suppress(OSError):  # somebody made the folder meanwhile
            _rename_folder(scratch, folder)
            _sync_folders(folder.parent, set())
            return
    finish(folder)
    _rename_folder(scratch, folder / COMPLETE)
    _sync_folders(folder, set())
    finish(folder)


def _write_digest(folder: Path, former: dict[str, str]) -> None:
    """Syncs all files and folders, then writes the digest over them and over those that a former one lists and that stay."""
    names = _files(folder)
    for name in names:
        _sync(folder / name, os.O_RDWR if WINDOWS else os.O_RDONLY)  # Windows syncs only what may be written
    digest = former | {name: file_digest(folder / name) for name in names}
    write_text(folder / DIGEST, json.dumps({"sha256": digest}, indent=1) + "\n")
    _sync_folders(folder, {(folder / name).parent for name in names})


def _read_digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its name relative to the folder; empty where there is no digest."""
    path = folder / DIGEST
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        if not all(_is_inside(name) and isinstance(value, str) for name, value in entries.items()):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path}: damaged; copy the folder anew, or save it again") from None
    return entries


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder but its digest."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if name != DIGEST]


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _replace(source: Path, target: Path) -> None:
    """Moves a file over another; on Windows one that is open makes room under another name, or is waited for."""
    stop = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if not WINDOWS:
                raise
            with suppress(OSError):
                os.replace(target, target.parent / f"{REPLACED}{uuid.uuid4().hex[:8]}")
                continue
            if time.monotonic() > stop:
                raise OSError(f"{target}: is open in another program; close it and try again") from error
        time.sleep(0.05)


def _rename_folder(source: Path, target: Path) -> None:
    """Renames a folder; on Windows scanners that look into its new files are waited for."""
    stop = time.monotonic() + PATIENCE
    while True:
        try:
            os.rename(source, target)
            return
        except PermissionError:
            if not WINDOWS or time.monotonic() > stop:
                raise
        time.sleep(0.05)


def _sync_folders(root: Path, below: set[Path]) -> None:
    """Makes renames last; Windows has no such call, and orders them by itself."""
    if WINDOWS:
        return
    chain = {root} | {parent for path in below for parent in (path, *path.parents) if parent.is_relative_to(root)}
    for folder in chain:
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alive(scratch: Path, timeout: float = -1) -> Iterator[FileLock]:
    """A lock beside a folder that is being written, by which others tell a writer that lives from what a dead one left."""
    lock = FileLock(f"{scratch}{LOCK}", timeout=timeout)
    with suppress(NotImplementedError):  # a file system without locks
        lock.acquire()
    try:
        yield lock
    finally:
        lock.release()
        with suppress(OSError):
            os.unlink(lock.lock_file)
