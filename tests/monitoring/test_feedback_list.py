"""Reading what operators said: the latest word counts, what is cut off is passed over, what is no record is refused."""

import json

import pytest
from diffad.monitoring.feedback_list import check_drawn_at_random, read_feedback

RECORD = {
    "name": "a.png",
    "digest": "a" * 64,
    "verdict": "defective",
    "correct_verdict": "good",
    "score": 1.5,
    "p_value": None,
    "time": "2026-11-29T12:00:00+00:00",
    "note": "",
}


def write(path, *records, rest: str = ""):
    path.write_text("".join(json.dumps({**RECORD, **record}) + "\n" for record in records) + rest)
    return path


def test_the_latest_word_counts(tmp_path):
    path = write(
        tmp_path / "feedback.jsonl",
        {"time": "2026-11-29T14:00:00+02:00", "correct_verdict": "good"},
        {"time": "2026-11-29T11:00:00+00:00", "correct_verdict": "defective"},
        {"digest": "b" * 64, "verdict": "good", "correct_verdict": "defective"},
        {"digest": "c" * 64, "verdict": "defective", "correct_verdict": "defective"},
        {"digest": "d" * 64, "verdict": "unknown"},
        rest='{"name": "cut o',
    )
    feedback = read_feedback(path)
    assert feedback.wrongly_rejected == {"a" * 64, "d" * 64}
    assert feedback.missed == {"b" * 64} and feedback.defective == {"b" * 64, "c" * 64} and feedback.cut_off == 1
    assert not read_feedback(write(tmp_path / "empty.jsonl")).records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "0"}, "line 1: digest must be"),
        ({"correct_verdict": "bad"}, "line 1: correct_verdict must be"),
        ({"score": "high"}, "line 1: score must be a number or null"),
        ({"name": 3}, "line 1: name must be text"),
        ({"time": "today"}, "line 1: time must be ISO 8601"),
        ({"more": 1}, "line 1: not a record of feedback"),
    ],
)
def test_what_is_no_record_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_feedback(write(tmp_path / "feedback.jsonl", change))


def test_another_file_is_refused(tmp_path):
    (tmp_path / "results.csv").write_text("path,score\na.png,1\n")
    with pytest.raises(ValueError, match="no line of it is JSON"):
        read_feedback(tmp_path / "results.csv")


def test_images_most_of_which_were_rejected_are_no_sample(tmp_path):
    digests = [f"{i:064x}" for i in range(5)]
    feedback = read_feedback(write(tmp_path / "feedback.jsonl", *({"digest": digest} for digest in digests[:3])))
    with pytest.raises(ValueError, match="3 of 5 images were reported as wrongly rejected"):
        check_drawn_at_random(digests, feedback, "new")
    check_drawn_at_random([*digests, "f" * 64], feedback, "new")
