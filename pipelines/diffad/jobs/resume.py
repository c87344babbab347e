"""Runs that are killed and go on where they were: a journal of finished rows, and a record of what made a finished table."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout

from ..system.atomic import write_text
from ..system.file_digest import file_digest
from ..system.text import one_line

SHOWN_CHARACTERS = 100  # of a value in a message


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

    What a line holds is finished when its line feed is there: a process killed within a line loses that line only, a machine
    that stopped those from the first on that it did not write. A context manager, within which the file is open; see
    [`only_writer`] for other processes.

    Args:
        path: of the journal; it is made if it does not exist.
        run: everything that rows depend on, as values JSON can hold.
        check: raises ValueError unless the finished rows are some of this run.

    Raises:
        ValueError: on entering, if the file is no journal, is damaged, or belongs to another run; it is left as it is.
    """

    def __init__(self, path: Path, run: dict, check: Callable[[Iterable[dict]], None] = lambda rows: None):
        self.path, self.run, self.check = path, run, check
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
        """Adds finished rows, which survive the process from then on."""
        for row in rows:
            self._file.write(_line(row))
            self.length += 1
        self._file.flush()

    def __iter__(self) -> Iterator[dict]:
        """Reads all finished rows from the first on, one by one."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def _resume(self) -> None:
        """Counts the finished rows and cuts off what follows them; rows of another run are left alone."""
        self._file.seek(0)
        entries, end = 0, 0
        for line in self._file:
            # A machine that stopped leaves zeros where it did not write.
            if (b"\0" in line or not line.endswith(b"\n")) and line.startswith((b"{", b"\0")):
                break
            entry = self._parsed(line, entries + 1)
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
            self._check_rows(entries - 1)
            self._file.truncate(end)
            self.length = entries - 1
        else:
            self._file.truncate(0)
            self._file.write(_line(self.run))
            self._file.flush()

    def _check_rows(self, count: int) -> None:
        try:
            self.check(islice(self, count))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}; remove the file to begin anew") from None

    def _parsed(self, line: bytes, number: int) -> dict:
        try:
            return _parsed_object(line)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: line {number} is not one of a journal ({one_line(error)}); remove the file to begin anew"
            ) from None


def write_record(table: Path, run: Mapping) -> None:
    """Writes `<table>.run.json`, which says what made a table: it is taken for a run's result only if it is that very run's.

    Args:
        table: that is complete.
        run: everything that its rows depend on, as values JSON can hold.
    """
    write_text(_record_path(table), json.dumps({"run": run, "table": file_digest(table)}, indent=2) + "\n")


def check_is_result(table: Path, run: Mapping) -> None:
    """Raises ValueError unless the table is the unchanged result of the run."""
    path = _record_path(table)
    if not path.is_file():
        raise ValueError(f"{table}: exists already; remove it, or name another file")
    try:
        record = _parsed_object(path.read_bytes())
        recorded_run, recorded_table = record.get("run"), record.get("table")
        if not isinstance(recorded_run, dict) or not isinstance(recorded_table, str):
            raise ValueError("no run and table in it")
    except ValueError as error:
        raise ValueError(
            f"{path}: is not the record of a run ({one_line(error)}); remove it and the table, or name another table"
        ) from None
    if recorded_table != file_digest(table):
        raise ValueError(f"{table}: exists already; remove it, or name another file")
    difference = difference_of_runs(recorded_run, run)
    if difference:
        raise ValueError(f"{table}: exists already, of a run that differs: {difference}; remove it, or name another file")


def difference_of_runs(kept: Mapping, run: Mapping) -> str | None:
    """The first thing in which a run differs from one that is kept, in words; None if they are the same."""
    for key in {**kept, **run}:
        if kept.get(key) != run.get(key):
            name, there, now = (" ".join(str(value).split())[:SHOWN_CHARACTERS] for value in (key, kept.get(key), run.get(key)))
            return f"{name.replace('_', ' ')} {there} there, {now} now"
    return None


def files_digest(folder: Path, names: Sequence[str]) -> str:
    """Digest of the names, sizes and modification times of files, without reading them; a broken link has neither."""
    return digest_of_files((name, *_size_and_time(folder / name)) for name in names)


def digest_of_files(files: Iterable[tuple[str, int | None, int | None]]) -> str:
    """Digest of names, sizes and modification times in nanoseconds; both are None for what is gone."""
    digest = hashlib.sha256()
    for name, size, time in files:
        state = "gone" if size is None else f"{size}\0{time}"
        digest.update(f"{name}\0{state}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _size_and_time(path: Path) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns


def _line(entry: dict) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _parsed_object(text: bytes) -> dict:
    """A JSON object, whatever the text holds.

    Raises:
        ValueError: if it is none.
    """
    try:
        entry = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    return entry


def _record_path(table: Path) -> Path:
    return table.with_name(f"{table.name}.run.json")
