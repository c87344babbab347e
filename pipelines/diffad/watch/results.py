"""A result as sinks get it: the row of a prediction, under a number that is never given twice."""

import numpy as np

from ..jobs.table import SCHEMA

# `id` is unique among all journals; `number` counts parts from 1; `time` is when the part was judged, `taken` when its file or
# frame was made, both in UTC. Then the columns of `diffad predict`; the model's digest; and what the drift monitor says.
COLUMNS = ["id", "number", "time", "taken", *SCHEMA.names, "model", "monitor"]
AS_CALIBRATED, CHANGED = "as calibrated", "changed"  # values of `monitor`, which is empty where nothing is monitored


def make_result(row: dict, identity: str, number: int, taken: int, now: int, model: str, monitor: str | None = None) -> dict:
    """All of [`COLUMNS`] for one part.

    Args:
        row: of [`diffad.runtime.rows.rows_of`], or `path` and `error` of a part without a verdict.
        identity: of the journal.
        taken, now: nanoseconds since 1970, UTC.
    """
    head = {"id": f"{identity}-{number}", "number": number, "time": _text(now), "taken": _text(taken)}
    return dict.fromkeys(COLUMNS) | head | row | {"model": model, "monitor": monitor}


def is_defective(result: dict) -> bool:
    """The verdict; of a part that has one."""
    return result["label"] != "good"


def _text(moment: int) -> str:
    return f"{np.datetime64(moment, 'ns').astype('datetime64[ms]')}Z"
