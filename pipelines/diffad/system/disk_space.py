"""What a disk has room for: refused in one line before anything is written, or as soon as it is full."""

import errno
import os
import shutil
from pathlib import Path

CHUNK = 1 << 24  # bytes


class DiskFullError(OSError):
    """A disk has too little space; the message names what was to be written and how much it takes."""


def check_space(path: str | Path, size: int) -> None:
    """Refuses to write `size` bytes where the disk has less.

    Raises:
        DiskFullError: naming the path and both sizes.
    """
    existing = next(parent for parent in (Path(path), *Path(path).absolute().parents) if parent.exists())
    if size > shutil.disk_usage(existing).free:
        raise DiskFullError(_too_little_space(path, size))


def reserve(path: str | Path, size: int) -> None:
    """Extends a file, which need not exist, to `size` bytes and takes their space now.

    Without it a memory map of the file is no more than a promise, and writing to it kills the process when the disk is full.

    Raises:
        DiskFullError: if the disk has less; the file is removed then.
    """
    path = Path(path)
    try:
        with path.open("ab") as file:
            missing = size - file.tell()
            if missing > 0 and not _allocate(file.fileno(), file.tell(), missing):
                for start in range(0, missing, CHUNK):
                    file.write(bytes(min(CHUNK, missing - start)))
    except OSError as error:
        path.unlink(missing_ok=True)
        if is_disk_full(error, path.parent):
            raise DiskFullError(_too_little_space(path, size)) from error
        raise


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Also for writers of weights, whose errors are no OSErrors: their text, or that nothing is free, gives them away."""
    if isinstance(error, DiskFullError):
        return False  # says more already
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return True
    return not isinstance(error, OSError | ValueError) and shutil.disk_usage(folder).free < 1 << 16


def _allocate(descriptor: int, start: int, size: int) -> bool:
    """Whether the system could take the space in one call."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, start, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that can't
            return False
        raise
    return True


def _too_little_space(path: str | Path, size: int) -> str:
    existing = next(parent for parent in (Path(path), *Path(path).absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    return f"{path}: takes {in_units(size)}, and {in_units(free)} are free on its disk"


def in_units(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
