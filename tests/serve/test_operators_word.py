"""POST /feedback."""

import json
from datetime import datetime

from running import png


def test_an_entry_is_on_the_disk_before_the_answer(server):
    (judged,) = server.client.post("/predict?name=part 7.png", content=png(61)).json()["images"]
    said = {name: judged[name] for name in ("name", "digest", "score", "p_value")}
    said |= {"verdict": judged["label"], "correct_verdict": "defective", "note": "scratch at the rim"}
    answer = server.client.post("/feedback", json=said)
    assert answer.status_code == 201
    last = json.loads(server.service.settings.feedback.read_text().splitlines()[-1])
    assert last == {**said, "time": answer.json()["time"]}
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(last["time"])).total_seconds()) < 60
    assert server.metric("diffad_feedback_total", verdict="good", correct_verdict="defective") >= 1


def test_what_can_not_be_used_is_refused(server):
    good = {"name": "a", "digest": "0" * 64, "verdict": "good", "correct_verdict": "defective"}
    for change, message in (
        ({"digest": "0"}, "digest must be the image's SHA-256"),
        ({"verdict": "bad"}, "verdict must be one of good, defective, unknown"),
        ({"correct_verdict": "unknown"}, "correct_verdict must be good or defective"),
        ({"p_value": 2}, "body.p_value: "),
        ({"name": None}, "body.name: "),
        ({"note": "x" * 2001}, "body.note: "),
    ):
        answer = server.client.post("/feedback", json=good | change)
        assert answer.status_code == 422 and message in answer.json()["error"], answer.text


def test_a_full_disk_is_retryable(server, monkeypatch):
    def full(path, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffad.serve.service.append_feedback", full)
    said = {"name": "a", "digest": "0" * 64, "verdict": "good", "correct_verdict": "defective"}
    answer = server.client.post("/feedback", json=said)
    assert answer.status_code == 503 and answer.json()["retryable"] and "No space left" in answer.json()["error"]
