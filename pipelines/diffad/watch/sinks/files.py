"""Results in a file that grows: CSV or JSON lines, each result exactly once."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ...jobs.table import csv_row
from ...system.atomic import sync_folder
from ...system.text import one_line
from ..results import COLUMNS
from ..states import Situation

BLOCK = 2**16  # bytes


class TableFile:
    """Appends results to a file. What is delivered is on the disk.

    The file itself says which result it got last: a line that a kill or a full disk cut off is removed, and results that it
    has are not written again. It is opened for each delivery, so that it may be moved away; a new one is begun then.

    Args:
        path: `.csv` or `.jsonl`.
        identity: of the journal that the results come from.

    Raises:
        ValueError: if the name has another ending, or the file holds anything else.
        FileNotFoundError: if there is no folder for it.
    """

    wants_latest_only = False

    def __init__(self, path: Path, identity: str):
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise ValueError(f"{path}: results are appended to .csv or .jsonl")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder")
        self.path, self.address, self._identity = path, str(path.resolve()), identity
        self._is_csv = path.suffix.lower() == ".csv"
        self._head = _csv_line(COLUMNS) if self._is_csv else b""
        self._beginning = self._head or f'{{"id": "{identity}-'.encode()
        if path.exists():
            self._last_number()

    def send(self, results: Sequence[dict], situation: Situation) -> None:
        """Appends the results that the file lacks; see [`Sink`].

        Raises:
            OSError: if the disk is full or the file can't be written.
            ValueError: if the file holds anything else by now.
        """
        if not results:
            return
        last = self._last_number()
        lines = b"".join(self._line(result) for result in results if result["number"] > last)
        with self.path.open("ab") as file:
            is_new = file.tell() == 0
            file.write(self._head + lines if is_new else lines)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)

    def close(self) -> None:
        """Nothing is open between deliveries."""

    def _last_number(self) -> int:
        """Number of the last whole line's result, 0 without one; removes what follows it."""
        try:
            with self.path.open("r+b") as file:
                beginning = file.read(len(self._beginning))
                if not self._beginning.startswith(beginning):
                    raise ValueError("another beginning")
                end, line = _last_line(file)
                number = 0 if not line or line == self._head else self._number(line)
                if end < file.seek(0, io.SEEK_END):
                    file.truncate(end)
                return number
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: holds something else ({one_line(error)}); name another file") from None

    def _number(self, line: bytes) -> int:
        head = line.decode().partition(",")[0] if self._is_csv else json.loads(line)["id"]
        identity, _, number = head.rpartition("-")
        if identity != self._identity:
            raise ValueError("results of another journal")
        return int(number)

    def _line(self, result: dict) -> bytes:
        if not self._is_csv:
            return json.dumps(result, ensure_ascii=False).encode() + b"\n"
        row = csv_row(result)
        # A line feed in the name of a file would look like the end of a result.
        return _csv_line(" ".join(str(row[name]).splitlines()) if row[name] is not None else "" for name in COLUMNS)


def _csv_line(cells) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _last_line(file) -> tuple[int, bytes]:
    """Where the last whole line of a file ends, and that line; 0 and nothing in a file without one."""
    position, tail = file.seek(0, io.SEEK_END), b""
    while position > 0 and tail[: tail.rfind(b"\n") + 1].count(b"\n") < 2:
        size = min(BLOCK, position)
        position -= size
        file.seek(position)
        tail = file.read(size) + tail
    whole = tail[: tail.rfind(b"\n") + 1]
    return position + len(whole), whole[whole.rfind(b"\n", 0, -1) + 1 :]
