"""The monitor inside a server."""

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
from diffad.monitoring.drift_monitor import DriftMonitor, StateError
from diffad.monitoring.feedback import FeedbackRecord
from diffad.monitoring.feedback_list import FeedbackList
from diffad.serve.drift import CategoryMonitors, SavedStates
from diffad.serve.messages import ModelInfo
from diffad.serve.metrics import Metrics
from diffad.serve.settings import ServeSettings
from running import form, png, running
from stub_model import SCORES, save_stub

ONE = ModelInfo("one", None, None, (SCORES,), (0.05,))
TWO = ModelInfo("two", ("nut", "bolt"), None, (SCORES, SCORES), (0.05, 0.1))


def rows(*scores: float, category: str | None = None, label: str = "good") -> list[dict]:
    return [{"score": s, "category": category, "label": label, "name": f"{s:g}.png", "digest": digest(s)} for s in scores]


def digest(score: float) -> str:
    return hashlib.sha256(f"{score:g}".encode()).hexdigest()


def wrongly_rejected(*scores: float) -> FeedbackList:
    said = {"verdict": "defective", "correct_verdict": "good", "score": None, "p_value": None, "time": "2026-01-01T00:00Z"}
    feedback = FeedbackList()
    for score in scores:
        feedback.add(FeedbackRecord(f"{score:g}.png", digest(score), **said))
    return feedback


def test_it_is_a_drift_monitor_of_each_category(tmp_path):
    drift, expected = CategoryMonitors(TWO, 0.05, {}), DriftMonitor(np.array(SCORES), 0.1, 0.025)
    for score in (50.0, 70.0, 170.0):
        drift.update(rows(score, category="bolt"))
        expected.update(score)
    drift.update(rows(50.0, label="unknown"))
    nut, bolt = drift.summary()
    assert nut["parts"] == 0 and bolt["parts"] == 3 and bolt["rejected"] == 1
    assert bolt["evidence"] == expected.state.evidence and bolt["limits"] == expected.state.limits


def test_it_goes_on_after_a_restart_and_keeps_models_and_levels_apart(tmp_path):
    path = tmp_path / "monitor.json"
    first, second = CategoryMonitors(ONE, 0.05, {}), CategoryMonitors(TWO, 0.05, {})
    first.update(rows(50.0, 60.0))
    second.update(rows(50.0, category="nut"))
    states = SavedStates(path)
    states.take(first)
    states.write()
    states.take(second)
    states.write()
    saved = SavedStates(path).of_models
    assert CategoryMonitors(ONE, 0.05, saved).summary() == first.summary() and first.summary()[0]["parts"] == 2
    assert CategoryMonitors(TWO, 0.05, saved).summary() == second.summary()
    assert CategoryMonitors(ONE, 0.1, saved).summary()[0]["parts"] == 0
    time = path.stat().st_mtime_ns
    states.take(first)  # nothing new
    states.write()
    assert path.stat().st_mtime_ns == time
    saved[first.key][""]["parts"] = "many"
    with pytest.raises(StateError, match="damaged"):
        CategoryMonitors(ONE, 0.05, saved)
    for text in ("", "[]", '{"format": 2, "models": {}}', '{"format": 1, "models": {"a": 1}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="monitor.json: can't be read"):
            SavedStates(path)


def test_the_log_says_why_a_monitor_begins_anew(caplog):
    first, second = CategoryMonitors(ONE, 0.05, {}), CategoryMonitors(TWO, 0.05, {})
    saved = {first.key: first.state()}
    CategoryMonitors(ONE, 0.05, saved)
    CategoryMonitors(ONE, 0.1, {})
    assert not caplog.messages
    CategoryMonitors(ONE, 0.1, saved, with_feedback=True)
    CategoryMonitors(ONE, 0.1, {second.key: {"nut": first.state()[""] | {"identity": "another"}}})
    CategoryMonitors(dataclasses.replace(ONE, digest="exported"), 0.05, saved)
    assert caplog.messages == [
        "the monitor begins anew: level 0.05 there, 0.1 now, feedback False there, True now",
        "the monitor begins anew: no state of this model was saved",
        "the monitor begins anew: another model with the same calibration scores",
    ]


def test_operators_words_are_a_test_of_the_monitor(tmp_path):
    drift, expected = (
        CategoryMonitors(TWO, 0.05, {}, with_feedback=True),
        DriftMonitor(np.array(SCORES), 0.1, 0.025, with_feedback=True),
    )
    parts = [50.0, 300.0, 60.0, 301.0, 302.0]  # three of them rejected
    drift.update(rows(*parts, category="bolt"))
    for score in parts:
        expected.update(score)
    feedback = wrongly_rejected(301.0, 302.0, 999.0)  # the last was judged elsewhere
    drift.take_feedback(feedback)
    nut, bolt = drift.summary()
    assert bolt["evidence"] == expected.set_reports([3, 4]).evidence and nut["evidence"]["feedback"] < 1
    # After a restart words on earlier parts still find them
    states = SavedStates(tmp_path / "monitor.json")
    states.take(drift)
    states.write()
    again = CategoryMonitors(TWO, 0.05, SavedStates(states.path).of_models, with_feedback=True)
    assert again.summary() == drift.summary()
    again.take_feedback(wrongly_rejected(300.0, 301.0))
    assert again.monitors["bolt"].reported == [1, 3]  # what is said now counts, not what was said before
    assert CategoryMonitors(TWO, 0.05, states.of_models).summary()[1]["parts"] == 0  # without the test it is another monitor
    del states.of_models[drift.key]["nut"]["rejected"]
    with pytest.raises(StateError, match="damaged"):
        CategoryMonitors(TWO, 0.05, states.of_models, with_feedback=True)


def test_a_full_disk_ends_no_server(tmp_path, caplog):
    states, drift = SavedStates(tmp_path / "gone/monitor.json"), CategoryMonitors(ONE, 0.05, {})
    states.take(drift)
    states.write()
    assert "could not be saved" in caplog.text
    (tmp_path / "gone").mkdir()
    states.take(drift)
    states.write()
    assert SavedStates(states.path).of_models == {drift.key: drift.state()}


def test_values_beyond_floats_are_json(monkeypatch):
    drift = CategoryMonitors(ONE, 0.05, {})
    endless = dataclasses.replace(drift.monitors[None].state, evidence={"scores": math.inf}, alarms={"scores": 7})
    monkeypatch.setattr(DriftMonitor, "state", endless)
    drift.show(metrics := Metrics())
    (state,) = json.loads(json.dumps(drift.summary(), allow_nan=False))
    assert state["changed"] and state["evidence"]["scores"] == 1e308
    assert metrics.registry.get_sample_value("diffad_monitor_changed", {"category": ""}) == 1


def test_a_server_tells_that_production_has_changed(tmp_path):
    state = tmp_path / "monitor.json"
    settings = ServeSettings(monitor_state=state)
    with running(save_stub(tmp_path / "model"), settings) as server:
        for _ in range(6):
            server.client.post("/predict", files=form(*[png(level) for level in range(120, 134, 2)])).raise_for_status()
        (found,) = server.client.get("/monitor").json()["categories"]
        assert found["parts"] == 42 and found["changed"] and set(found["alarms"]) == {"scores"}
        assert server.metric("diffad_monitor_changed", category="") == 1
        assert server.metric("diffad_monitor_parts", category="") == 42
        evidence = server.metric("diffad_monitor_evidence", category="", test="scores")
        assert evidence == found["evidence"]["scores"] > server.metric("diffad_monitor_limit", category="", test="scores")
    with running(save_stub(tmp_path / "model"), settings) as server:
        assert server.client.get("/monitor").json()["categories"] == [found]


def test_a_server_tells_that_operators_reject_its_rejects(tmp_path):
    settings = ServeSettings(monitor_state=tmp_path / "monitor.json", feedback=tmp_path / "feedback.jsonl")

    def evidence(server) -> float:
        (found,) = server.client.get("/monitor").json()["categories"]
        return found["evidence"]["feedback"]

    with running(save_stub(tmp_path / "model"), settings) as server:
        judged = server.client.post("/predict", files=form(*[png(level) for level in (250, 251, 252)])).json()["images"]
        assert {row["label"] for row in judged} == {"defective"}
        before = evidence(server)
        for row in judged:
            said = {"name": row["name"], "digest": row["digest"], "verdict": "defective", "correct_verdict": "good"}
            server.client.post("/feedback", json=said).raise_for_status()
        after = evidence(server)
        assert after > 10 * before
    with running(save_stub(tmp_path / "model"), settings) as server:
        assert evidence(server) == after
