"""What was judged, and what each sink has got of it, in one SQLite file that survives kills and losses of power."""

import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..monitoring.state_digest import DamagedStateError
from ..system.differences import differences
from ..system.text import one_line
from .sources.part import PartKey

FORMAT = 1
TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    number INTEGER PRIMARY KEY, name BLOB NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL, result TEXT,
    UNIQUE (name, size, modified)
);
CREATE TABLE IF NOT EXISTS sinks (address TEXT PRIMARY KEY, delivered INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS features (number INTEGER PRIMARY KEY, vector BLOB NOT NULL);
"""
# Names in `about`; SETTINGS are those of the latest run
SOURCE, IDENTITY, FORGOTTEN, MONITOR, SETTINGS = "source", "identity", "forgotten", "monitor", "settings"


class JournalError(OSError):
    """The journal can't be written or read now; what was asked for is not done, and may be tried again."""


class PartJournal:
    """Results in the order of their numbers, 1, 2, ...; a sink's mark is the last number that it has got.

    An entry is on the disk when the method that makes it returns. The file is locked: a second process is refused. Methods may
    be called from several threads. A context manager.

    Args:
        path: of the file; it is made if it does not exist, in an existing folder of a local disk.
        source: address that the parts come from; a journal belongs to one.
        remembers: whether a part of a former run may come again, so that all keys are kept: about 120 bytes for each part.

    Raises:
        ValueError: if the file is no journal, damaged, of another source, or in use.
        JournalError: if the file can't be made.
    """

    def __init__(self, path: Path, source: str, remembers: bool = True):
        self.path, self.remembers = path, remembers
        self._lock = threading.RLock()
        self._sinks: set[str] = set()
        try:
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise JournalError(f"{path}: can't be opened ({one_line(error)})") from None
        try:
            # Locked for good, so that no file is mapped into memory, which a full disk could not back.
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            with self._transaction() as run:
                for statement in TABLES.split(";\n"):
                    run(statement)
            self._check(source)
            self._last: int = self._about_number("SELECT coalesce(max(number), 0) FROM parts")
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise ValueError(f"{path}: another process uses this journal; stop it, or name another --journal") from None
            if isinstance(error, sqlite3.OperationalError):
                raise JournalError(f"{path}: {one_line(error)}") from None
            if isinstance(error, sqlite3.DatabaseError):
                raise ValueError(f"{path}: not a journal, or damaged ({one_line(error)}); name another --journal") from None
            raise

    def __enter__(self) -> "PartJournal":
        return self

    def __exit__(self, *exception) -> None:
        with self._lock:
            self._connection.close()

    @property
    def next_number(self) -> int:
        """Number of the next part."""
        return self._last + 1

    def knows(self, key: PartKey) -> bool:
        """Whether the part was judged."""
        query = "SELECT 1 FROM parts WHERE name = ? AND size = ? AND modified = ?"
        return self._one(query, _stored(key)) is not None

    def append(self, key: PartKey, result: dict, features: np.ndarray | None = None) -> None:
        """Adds the next part's result, and its features `(D,)` until the monitor's state is saved."""
        with self._transaction() as run:
            run("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", (self.next_number, *_stored(key), json.dumps(result)))
            if features is not None:
                run("INSERT INTO features VALUES (?, ?)", (self.next_number, np.asarray(features, dtype="<f4").tobytes()))
        self._last += 1

    def features(self, number: int) -> np.ndarray | None:
        """Features `(D,)` of a part that is not in the saved state of the monitor; None if it has none."""
        found = self._one("SELECT vector FROM features WHERE number = ?", (number,))
        return None if found is None else np.frombuffer(found[0], dtype="<f4")

    def results(self, after: int, until: int, limit: int) -> list[dict]:
        """At most `limit` results with numbers above `after` up to `until`, in their order, but those that were forgotten."""
        query = "SELECT result FROM parts WHERE number > ? AND number <= ? AND result IS NOT NULL ORDER BY number LIMIT ?"
        with self._errors(), self._lock:
            return [json.loads(text) for (text,) in self._connection.execute(query, (after, until, limit))]

    def add_sink(self, address: str) -> None:
        """Names a sink of this run. One that is new to the journal gets the results from the next one on."""
        with self._transaction() as run:
            run("INSERT OR IGNORE INTO sinks VALUES (?, ?)", (address, self._last))
        self._sinks.add(address)

    def delivered(self, address: str) -> int:
        """A sink's mark."""
        return self._one("SELECT delivered FROM sinks WHERE address = ?", (address,))[0]

    def mark_delivered(self, address: str, number: int) -> None:
        """Sets a sink's mark."""
        with self._transaction() as run:
            run("UPDATE sinks SET delivered = ? WHERE address = ?", (number, address))

    def begin_run(self, settings: Mapping[str, Any]) -> str:
        """Keeps what parts are judged with from now on; what the latest run judged with otherwise, empty for nothing.

        Args:
            settings: by their names, values that JSON can hold.
        """
        found = self._one("SELECT value FROM about WHERE name = ?", (SETTINGS,))
        former = settings
        if found is not None and self._last > 0:
            with suppress(DamagedStateError):  # nothing is said then
                former = _read_object(found[0])
        with self._transaction() as run:
            run("INSERT OR REPLACE INTO about VALUES (?, ?)", (SETTINGS, json.dumps(settings)))
        return differences(former, settings)

    def saved_monitor(self) -> dict | None:
        """What [`PartJournal.save_monitor`] was given last.

        Raises:
            DamagedStateError: if it can't be read.
        """
        found = self._one("SELECT CAST(value AS BLOB) FROM about WHERE name = ?", (MONITOR,))  # may be no text any more
        if found is None:
            return None
        return _read_object(found[0])

    def save_monitor(self, state: dict) -> None:
        """Keeps the state of a drift monitor; `state["number"]` is that of the last part in it."""
        with self._transaction() as run:
            run("INSERT OR REPLACE INTO about VALUES (?, ?)", (MONITOR, json.dumps(state)))
            run("DELETE FROM features WHERE number <= ?", (state["number"],))

    def set_monitor_aside(self) -> str:
        """Keeps a state that can't be used under another name in the table `about`, for people to look at; that name."""
        kept = self._about_number("SELECT count(*) FROM about WHERE name LIKE 'kept monitor %'")
        name = f"kept monitor {kept + 1}"
        with self._transaction() as run:
            run("UPDATE about SET name = ? WHERE name = ?", (name, MONITOR))
        return name

    def forget(self, keep: int, monitored: int | None = None) -> None:
        """Drops results that all sinks and the monitor of this run have got, but for the latest `keep`; keys stay.

        Args:
            monitored: number of the last part in the saved state of the monitor; None where nothing is monitored.
        """
        with self._lock:
            marks = [self.delivered(address) for address in self._sinks]
            limit = min([self._last - keep, *marks, *([] if monitored is None else [monitored])])
            start = self._about_number("SELECT value FROM about WHERE name = 'forgotten'")
            if limit <= start:
                return
            what = "UPDATE parts SET result = NULL" if self.remembers else "DELETE FROM parts"
            with self._transaction() as run:
                run(f"{what} WHERE number > ? AND number <= ?", (start, limit))
                run("DELETE FROM features WHERE number <= ?", (limit,))
                run("UPDATE about SET value = ? WHERE name = ?", (str(limit), FORGOTTEN))

    def _check(self, source: str) -> None:
        """Writes what the journal is about into a new one, and compares it in another."""
        with self._transaction() as run:
            about = {SOURCE: source, IDENTITY: uuid.uuid4().hex[:12], FORGOTTEN: "0", "format": str(FORMAT)}
            for entry in about.items():
                run("INSERT OR IGNORE INTO about VALUES (?, ?)", entry)
        about = dict(self._connection.execute("SELECT name, value FROM about"))
        if int(about["format"]) > FORMAT:
            raise ValueError(f"{self.path}: written by a later release of diffad")
        if about[SOURCE] != source:
            raise ValueError(f"{self.path}: belongs to {about[SOURCE]}, not to {source}; name another --journal")
        self.identity = about[IDENTITY]  # tells the results of one journal from those of another

    def _about_number(self, query: str) -> int:
        return int(self._one(query)[0])

    def _one(self, query: str, values: Sequence = ()) -> tuple | None:
        with self._errors(), self._lock:
            return self._connection.execute(query, values).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator:
        with self._errors(), self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if not hasattr(self, "_last"):  # opening says more
            yield
            return
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: {one_line(error)}") from error


def _read_object(text: str | bytes) -> dict:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedStateError(f"{type(error).__name__}: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise DamagedStateError("not an object of JSON")
    return found


def _stored(key: PartKey) -> tuple[bytes, int, int]:
    """Names of files need not be text."""
    return os.fsencode(key.name), key.size, key.modified
