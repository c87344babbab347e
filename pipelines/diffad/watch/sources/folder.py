"""Images that appear in a folder, each once it is written completely."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from watchfiles import watch

from ...data.walk import image_files, is_image_name, is_left_out
from ...imaging.decoding import ImageError
from ...imaging.reading import read_image
from .completeness import has_end
from .part import Part, PartKey

TICK = 0.02  # seconds between looks at files that are being written
# Looking through the whole folder finds what no notification has told: files on network drives, and of lost notifications.
LOOK_THROUGH = 1.0  # seconds, but at most a twentieth of the time goes into it
WORK_SHARE = 20


@dataclass
class PendingFile:
    """A file that may still be written.

    Args:
        key: as it was at the last look.
        since: monotonic time from which on it has been so.
        next_try: monotonic time before which it is not decoded again.
        tries: attempts at decoding it since then.
    """

    key: PartKey
    since: float
    next_try: float
    tries: int = 0


class FolderSource:
    """All images below a folder, the oldest first, as they come.

    A file is a part when its size and time of change have stayed for `settle`, it has its end, and it can be decoded. One that
    can't is waited for, and becomes a part without an image after `patience` without a change. A file that changes after it was
    a part is another part.

    Args:
        is_known: whether a part was judged already.
        once: end when every file that is there was a part.
        settle, patience: seconds.
        report: takes lines for the operator.
    """

    is_live = False

    def __init__(
        self,
        folder: Path,
        is_known: Callable[[PartKey], bool],
        once: bool = False,
        settle: float = 0.1,
        patience: float = 10.0,
        report: Callable[[str], None] = lambda line: None,
    ):
        self.folder, self._is_known, self._once = folder.resolve(), is_known, once
        self._settle, self._patience, self._report = settle, patience, report
        self.address = str(self.folder)
        self._candidates: dict[str, PendingFile] = {}
        self._given: set[PartKey] = set()  # not yet in the journal

    def parts(self, stop: threading.Event) -> Iterator[Part | None]:
        """Parts of the folder; see [`Source`].

        Raises:
            DataError, OSError: if the folder is gone, or another lies in its place.
        """
        identity = _identity(self.folder)
        changes = watch(
            self.folder,
            watch_filter=lambda _, path: self._is_seen(Path(path)),
            step=int(1000 * TICK / 2),
            debounce=int(1000 * TICK),
            rust_timeout=int(1000 * TICK),
            yield_on_timeout=True,
            stop_event=stop,
            ignore_permission_denied=True,
        )
        next_look = 0.0
        for changed in changes:
            for _, path in changed:
                self._see(Path(path))
            if time.monotonic() >= next_look:
                if _identity(self.folder) != identity:
                    raise OSError(f"{self.folder}: was replaced by another folder")
                started = time.monotonic()
                self._look_through()
                next_look = time.monotonic() + max(LOOK_THROUGH, WORK_SHARE * (time.monotonic() - started))
                yield None
            yield from self._ready()
            if self._once and not self._candidates:
                return

    def _look_through(self) -> None:
        for path in image_files(self.folder):
            self._see(path)
        self._given = {key for key in self._given if not self._is_known(key)}

    def _see(self, path: Path) -> None:
        """Notes a file that is new or has changed."""
        try:
            key = self._key(path)
        except OSError:  # gone again, or a broken link
            return
        known = self._candidates.get(key.name)
        if (known is None or known.key != key) and key not in self._given and not self._is_known(key):
            now = time.monotonic()
            self._candidates[key.name] = PendingFile(key, now, now + self._settle)

    def _ready(self) -> Iterator[Part]:
        """Files that are complete, or will not be, the oldest first."""
        now = time.monotonic()
        due = [candidate for candidate in self._candidates.values() if candidate.next_try <= now]
        for candidate in sorted(due, key=lambda candidate: (candidate.key.modified, candidate.key.name)):
            part = self._part(candidate)
            if part is not None:
                del self._candidates[candidate.key.name]
                self._given.add(part.key)
                yield part

    def _part(self, candidate: PendingFile) -> Part | None:
        """The candidate as a part; None if it has to wait, or is no candidate any longer."""
        path, name = self.folder / candidate.key.name, candidate.key.name
        image, is_complete = _decoded(path)
        try:
            key = self._key(path)
        except OSError:
            self._report(f"{path}: was removed before it was judged")
            del self._candidates[name]
            return None
        now = time.monotonic()
        if key != candidate.key:
            self._candidates[name] = PendingFile(key, now, now + self._settle)
        elif is_complete or now - candidate.since >= self._patience:
            return Part(key, image)
        else:
            candidate.tries += 1
            candidate.next_try = now + min(self._settle * 2**candidate.tries, self._patience)
        return None

    def _is_seen(self, path: Path) -> bool:
        """Whether a notification is of a file that looking through the folder finds under the same name."""
        folders = path.parent.relative_to(self.folder).parts
        return is_image_name(path.name) and not any(map(is_left_out, folders)) and path.parent.resolve() == path.parent

    def _key(self, path: Path) -> PartKey:
        status = os.stat(path)
        return PartKey(path.relative_to(self.folder).as_posix(), status.st_size, status.st_mtime_ns)


def _decoded(path: Path) -> tuple[Image.Image | ImageError, bool]:
    """An image, and whether its file has its end."""
    try:
        image = read_image(path)
        return image, has_end(path)
    except ImageError as error:
        return error, False
    except OSError as error:
        return ImageError(f"{path}: can't be read ({error.strerror})"), False


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
