"""What made a finished table, kept beside it: a table is taken for a run's result only if it is that very run's."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path


def write_record(table: Path, run: Mapping) -> None:
    """Writes `<table>.run.json`.

    Args:
        table: that is complete.
        run: everything that its rows depend on, as values JSON can hold.
    """
    path = _record_path(table)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps({"run": run, "table": _digest(table)}, indent=2) + "\n")
    os.replace(unfinished, path)


def check_is_result(table: Path, run: Mapping) -> None:
    """Raises ValueError unless the table is the unchanged result of the run."""
    path = _record_path(table)
    record = json.loads(path.read_text()) if path.is_file() else None
    if record is None or record["table"] != _digest(table):
        raise ValueError(f"{table}: exists already; remove it, or name another file")
    difference = difference_of_runs(record["run"], run)
    if difference:
        raise ValueError(f"{table}: exists already, of a run that differs: {difference}; remove it, or name another file")


def difference_of_runs(kept: Mapping, run: Mapping) -> str | None:
    """The first thing in which a run differs from one that is kept, in words; None if they are the same."""
    for key in {**kept, **run}:
        if kept.get(key) != run.get(key):
            return f"{key.replace('_', ' ')} {kept.get(key)} there, {run.get(key)} now"
    return None


def _record_path(table: Path) -> Path:
    return table.with_name(f"{table.name}.run.json")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
