"""A file of finished rows that a killed run leaves behind, and that the next one goes on from."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .run_record import difference_of_runs


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Keeps other processes from the run that writes `output`, from its first look at what is there to its last file.

    The lock file beside it, `.<output>.lock`, stays: were it removed, a process that has it open and one that makes it anew
    would both hold a lock.

    Raises:
        ValueError: if another process is in such a run.
    """
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{output}: another process is writing it; wait for it, or name another output") from None
    try:
        yield
    finally:
        lock.release()


class Journal:
    """Rows of a run as lines of JSON, below one line that says which run it is.

    What a line holds is finished when its line feed is there: a process killed within a line loses that line only. A context
    manager, within which the file is open; see [`only_writer`] for other processes.

    Args:
        path: of the journal; it is made if it does not exist.
        run: everything that rows depend on, as values JSON can hold.

    Raises:
        ValueError: on entering, if the file belongs to another run.
    """

    def __init__(self, path: Path, run: dict):
        self.path, self.run = path, run
        self.length = 0  # finished rows

    def __enter__(self) -> "Journal":
        self._file = self.path.open("a+b")
        try:
            self._resume()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

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

    def _resume(self) -> None:
        """Counts the finished rows and cuts off what follows them; rows of another run are left alone."""
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
            difference = difference_of_runs(run, self.run)
            if difference:
                raise ValueError(
                    f"{self.path}: belongs to an unfinished run that differs: {difference}; repeat that run to finish it, or "
                    "remove the file"
                )
            self._file.truncate(end)
            self.length = entries - 1
        else:
            self._file.truncate(0)
            self._file.write(_line(self.run))
            self._file.flush()


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
