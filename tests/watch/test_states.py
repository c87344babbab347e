"""The state machine and the registers, as tables."""

import struct
from itertools import product

import pytest
from diffad.watch.backoff import Backoff
from diffad.watch.board import Board
from diffad.watch.sinks.registers import COUNT, registers
from diffad.watch.states import Cause, Situation, State

RESULT = {"number": 70000, "label": "defective", "error": None, "score": 12.5, "image_threshold": 3.25, "defects": 2}
RESULT |= {"monitor": "changed"}


def test_numbers_that_controllers_know_stay():
    assert {state.name: state.value for state in State} == {"READY": 1, "BUSY": 2, "OK": 3, "NG": 4, "ERROR": 5}
    assert {cause.name: cause.value for cause in Cause} == {"SOURCE": 1, "MODEL": 2, "SINK": 4, "JOURNAL": 8, "PART": 16}


def test_a_part_after_another():
    now = Situation()
    seen = [now.state]
    for number, is_defective in enumerate((False, True, False), 1):
        now = now.taken()
        seen.append(now.state)
        now = now.judged(number, is_defective)
        seen.append(now.state)
        assert now.number == number
    names = ["READY", "BUSY", "OK", "BUSY", "NG", "BUSY", "OK"]
    assert [state.name for state in seen] == names


@pytest.mark.parametrize(("activity", "cause"), product((State.READY, State.BUSY, State.OK, State.NG), Cause))
def test_every_failure_is_an_error_and_no_old_verdict_comes_back(activity, cause):
    before = Situation(activity, 7)
    failed = before.failed(cause, "it", "reason")
    assert failed.state is State.ERROR and failed.causes == cause and failed.number == 7
    after = failed.recovered(cause, "it")
    assert after.state is (State.BUSY if activity is State.BUSY else State.READY)
    assert before.recovered(cause, "it") == before


def test_an_error_lasts_until_all_has_recovered():
    now = Situation().failed(Cause.SINK, "a", "x").failed(Cause.SINK, "b", "y").failed(Cause.SOURCE, "c", "z")
    assert now.causes == Cause.SINK | Cause.SOURCE
    now = now.recovered(Cause.SINK, "a")
    assert now.causes == Cause.SINK | Cause.SOURCE
    now = now.recovered(Cause.SINK, "b").taken().judged(1, True)  # parts are judged all the while
    assert now.state is State.ERROR and now.activity is State.NG
    assert now.recovered(Cause.SOURCE, "c").state is State.READY


def test_a_part_without_a_verdict_is_an_error_until_the_next_one():
    now = Situation().taken().not_judged(5, "unreadable")
    assert now.state is State.ERROR and now.causes == Cause.PART and now.number == 5
    assert now.taken().state is State.BUSY


@pytest.mark.parametrize("activity", (State.READY, State.OK, State.NG))
def test_no_verdict_without_a_part(activity):
    with pytest.raises(ValueError, match="no part was taken"):
        Situation(activity).judged(1, True)
    with pytest.raises(ValueError, match="no part was taken"):
        Situation(activity).not_judged(1, "reason")


def test_the_register_map():
    """Decoded as a controller would, by the guide's table."""
    words = registers(Situation(State.NG, 70000), RESULT, 65537)
    assert len(words) == COUNT == 12 and all(0 <= word < 65536 for word in words)
    assert words[:3] == [4, 0, 1] and words[5:7] == [2, 2] and words[11] == 2
    assert words[3] * 65536 + words[4] == 70000
    score, threshold = struct.unpack(">ff", struct.pack(">4H", *words[7:11]))
    assert (score, threshold) == (12.5, 3.25)


def test_registers_of_other_parts():
    error = Situation().failed(Cause.SINK, "a", "x").failed(Cause.PART, "", "y")
    assert registers(error, None, 0) == [5, 20, *[0] * 10]
    unreadable = {"number": 3, "error": "unreadable", "label": None, "score": None, "monitor": "as calibrated"}
    assert registers(error, unreadable, 0)[3:9] == [0, 3, 3, 1, 0, 0]
    unknown = RESULT | {"label": "unknown", "monitor": None, "defects": 10**6}
    assert [registers(Situation(), unknown, 0)[i] for i in (5, 6, 11)] == [2, 0, 65535]
    assert registers(Situation(), RESULT | {"label": "good"}, 0)[5] == 1


def test_the_board_reports_changes_only():
    lines: list[str] = []
    board = Board(4, lines.append)
    assert board.situation.number == 4
    for reason in ("a", "a", "b"):
        board.failed(Cause.SINK, "mqtt", reason)
    for _ in range(2):
        board.recovered(Cause.SINK, "mqtt")
    assert lines == [
        "sink mqtt failed: a; trying again",
        "sink mqtt failed: b; trying again",
        "sink mqtt works again",
    ]
    seen = board.wait(-1, 0)
    assert board.wait(seen, 0.01) == seen
    board.taken()
    assert board.wait(seen, 10) != seen


def test_waits_double_up_to_the_longest():
    backoff = Backoff(0.5, 3)
    assert [backoff.next() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    backoff.reset()
    assert backoff.next() == 0.5
