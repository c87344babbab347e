"""What lies below a folder: images and subfolders, without what operating systems and file servers put there."""

import os
from collections.abc import Callable
from pathlib import Path

from ..imaging.reading import IMAGE_SUFFIXES
from .sample import DataError

# Thumbnails, bins and snapshots; hidden folders need no entry. In lower case.
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@__thumb", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "~snapshot"}
    | {"$recycle.bin", "recycler", "recycled", "system volume information", "lost+found", "__macosx"}
    | {"network trash folder", "temporary items"}
)


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder by their names' endings, sorted; hidden files, hidden and system folders are left out.

    Links are followed. Every folder is searched once, whatever number of links lead to it, and under its own name if that lies
    below the folder, too; a link to a folder above is no part of it. A broken link is listed: reading it tells.

    Raises:
        DataError: if a folder can't be listed.
    """
    seen = {_identity(parent) for parent in folder.resolve().parents}
    found: list[Path] = []
    folders, links = [folder], []
    while folders or links:
        current = folders.pop() if folders else links.pop()
        identity = _identity(current)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in _entries(current):
            path = Path(entry.path)
            if _holds(entry.is_dir):
                if not is_left_out(entry.name):
                    (links if entry.is_symlink() else folders).append(path)
            elif is_image_name(entry.name) and (_holds(entry.is_file) or entry.is_symlink()):
                found.append(path)
        links.sort(reverse=True)  # the last one is the next
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """Folders directly inside a folder, sorted; hidden and system folders are left out, links are not.

    Raises:
        DataError: if the folder can't be listed.
    """
    return sorted(Path(entry.path) for entry in _entries(folder) if _holds(entry.is_dir) and not is_left_out(entry.name))


def child(folder: Path, *names: str) -> Path:
    """A path below a folder, given by the names of its parts in any case of letters; as given where there is none such.

    Raises:
        DataError: if several differ in the case of their letters only.
    """
    for name in names:
        found = (
            [entry.name for entry in _entries(folder) if entry.name.casefold() == name.casefold()] if folder.is_dir() else []
        )
        if len(found) > 1:
            raise DataError(f"{folder}: {' and '.join(sorted(found))} differ in the case of their letters only; rename one")
        folder = folder / (found[0] if found else name)
    return folder


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image and not hidden."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def is_left_out(name: str) -> bool:
    """Whether a folder's name says that it is hidden or not a user's."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror})") from error


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(f"{folder}: can't be listed ({error.strerror})") from error
    return status.st_dev, status.st_ino


def _holds(question: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; a link that leads round in a circle is of none."""
    try:
        return question()
    except OSError:
        return False
