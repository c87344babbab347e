"""The file of operators' words."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
from diffad.monitoring.feedback import FeedbackRecord, append_feedback

RECORD = FeedbackRecord(
    "Teil 7 \ufffd.png", "0" * 64, "good", "defective", 1.5, 0.25, "2026-03-01T12:00:00+00:00", "line 1\nline 2"
)


def test_each_record_is_one_line(tmp_path):
    path = tmp_path / "feedback.jsonl"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: append_feedback(path, RECORD), range(20)))
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [asdict(RECORD)] * 20


def test_a_torn_line_spoils_no_other(tmp_path):
    path = tmp_path / "feedback.jsonl"
    path.write_text('{"name": "cut')
    append_feedback(path, RECORD)
    append_feedback(path, RECORD)
    first, *others = path.read_text(encoding="utf-8").splitlines()
    assert first == '{"name": "cut' and [json.loads(line) for line in others] == [asdict(RECORD)] * 2


def test_what_can_not_be_synced_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "feedback.jsonl"
    append_feedback(path, RECORD)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "fsync", full)
        append_feedback(path, RECORD)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "bad"},
        {"correct_verdict": "unknown"},
        {"digest": "0" * 63},
        {"digest": "G" * 64},
        {"time": "yesterday"},
        {"time": "2026-03-01T12:00:00"},
    ],
)
def test_fields_are_checked(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} must be"):
        FeedbackRecord(**asdict(RECORD) | change)


def test_the_letter_z_is_an_offset_too():
    assert replace(RECORD, time="2026-03-01T12:00:00Z").moment == RECORD.moment
    assert replace(RECORD, time="2026-03-01T13:30:00.5+01:00").moment > RECORD.moment
