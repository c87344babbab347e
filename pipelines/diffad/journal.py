"""A file of finished rows that a killed run leaves behind, and that the next one goes on from."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class Journal:
    """Rows of a run as lines of JSON, below one line that says which run it is.

    What a line holds is finished when its line feed is there: a process killed within a line loses that line only. Opened
    as a context manager, so that two processes never write to one file.

    Args:
        path: of the journal; it is made if it does not exist.
        run: everything that rows depend on, as values JSON can hold.

    Raises:
        ValueError: on entering, if the file belongs to another run or another process is writing it.
    """

    def __init__(self, path: Path, run: dict):
        self.path, self.run = path, run
        self.length = 0  # finished rows
        self._lock = FileLock(f"{path}.lock")

    def __enter__(self) -> "Journal":
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.path}: another process is writing it; wait for it, or name another output") from None
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        self._release()

    def append(self, rows: Iterable[dict]) -> None:
        for row in rows:
            self._file.write(_line(row))
            self.length += 1
        self._file.flush()

    def __iter__(self) -> Iterator[dict]:
        """All finished rows from the first on, read from the file one by one."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def _open(self) -> None:
        """Counts the finished rows and cuts off what follows them; rows of another run are left alone."""
        self._file = self.path.open("a+b")
        self._file.seek(0)
        entries, end = 0, 0
        for line in self._file:
            entry = _parsed(line)
            if entry is None:
                break
            if entries == 0:
                run = entry
            entries += 1
            end += len(line)
        if entries > 1:
            self._check_run(run)
            self._file.truncate(end)
            self.length = entries - 1
        else:
            self._file.truncate(0)
            self._file.write(_line(self.run))
            self._file.flush()

    def _check_run(self, kept: dict) -> None:
        for key in {**kept, **self.run}:
            if kept.get(key) != self.run.get(key):
                self._file.close()
                raise ValueError(
                    f"{self.path}: belongs to an unfinished run that differs: {key.replace('_', ' ')} {kept.get(key)} there, "
                    f"{self.run.get(key)} now; repeat that run to finish it, or remove the file"
                )

    def _release(self) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)


def _line(entry: dict) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _parsed(line: bytes) -> dict | None:
    """The entry of a finished line, None for one that was being written when the process or the machine stopped."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None
