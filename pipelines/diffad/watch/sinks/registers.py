"""The map of holding registers that a controller reads; pure values."""

import struct
from enum import IntEnum

from ..results import CHANGED
from ..states import Situation


class Verdict(IntEnum):
    """Of the part in the registers."""

    NONE = 0  # no part yet
    OK = 1
    NG = 2
    UNJUDGED = 3  # its image can't be read or judged


class Monitor(IntEnum):
    """What the drift monitor says."""

    OFF = 0
    AS_CALIBRATED = 1
    CHANGED = 2


# Registers of 16 bits from the base address on; those of two hold the high word first, as the bytes within a register.
STATE, CAUSES, BEAT, NUMBER, VERDICT, MONITOR, SCORE, THRESHOLD, DEFECTS = 0, 1, 2, 3, 5, 6, 7, 9, 11
COUNT = 12


def registers(situation: Situation, result: dict | None, beat: int) -> list[int]:
    """Values of all registers.

    Args:
        result: the latest one.
        beat: number of writes before this one; the register counts modulo 65536.

    Returns:
        `COUNT` numbers in [0, 65535].
    """
    result = result or {}
    number = result.get("number", 0) % 2**32
    score, threshold = (result.get(name) or 0.0 for name in ("score", "image_threshold"))
    defects = min(result.get("defects") or 0, 65535)
    packed = struct.pack(
        ">HHHIHHffH",
        situation.state,
        situation.causes,
        beat % 65536,
        number,
        _verdict(result),
        _monitor(result),
        score,
        threshold,
        defects,
    )
    return list(struct.unpack(f">{COUNT}H", packed))


def _verdict(result: dict) -> Verdict:
    if not result:
        return Verdict.NONE
    if result["error"]:
        return Verdict.UNJUDGED
    return Verdict.OK if result["label"] == "good" else Verdict.NG


def _monitor(result: dict) -> Monitor:
    if result.get("monitor") is None:
        return Monitor.OFF
    return Monitor.CHANGED if result["monitor"] == CHANGED else Monitor.AS_CALIBRATED
