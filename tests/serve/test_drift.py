"""The monitor inside a server."""

import dataclasses
import json
import math

import numpy as np
import pytest
from diffad.monitoring.drift_monitor import DriftMonitor, StateError
from diffad.serve.drift import Drift, SavedStates
from diffad.serve.messages import ModelInfo
from diffad.serve.metrics import Metrics
from diffad.serve.settings import ServeSettings
from running import form, png, running
from stub_model import SCORES, save_stub

ONE = ModelInfo("one", None, None, (SCORES,), (0.05,))
TWO = ModelInfo("two", ("nut", "bolt"), None, (SCORES, SCORES), (0.05, 0.1))


def rows(*scores: float, category: str | None = None, label: str = "good") -> list[dict]:
    return [{"score": score, "category": category, "label": label} for score in scores]


def test_it_is_a_drift_monitor_of_each_category(tmp_path):
    drift, expected = Drift(TWO, 0.05, {}), DriftMonitor(np.array(SCORES), 0.1, 0.025)
    for score in (50.0, 70.0, 170.0):
        drift.update(rows(score, category="bolt"))
        expected.update(score)
    drift.update(rows(50.0, label="unknown"))
    nut, bolt = drift.summary()
    assert nut["parts"] == 0 and bolt["parts"] == 3 and bolt["rejected"] == 1
    assert bolt["evidence"] == expected.state.evidence and bolt["limits"] == expected.state.limits


def test_it_goes_on_after_a_restart_and_keeps_models_and_levels_apart(tmp_path):
    path = tmp_path / "monitor.json"
    first, second = Drift(ONE, 0.05, {}), Drift(TWO, 0.05, {})
    first.update(rows(50.0, 60.0))
    second.update(rows(50.0, category="nut"))
    states = SavedStates(path)
    states.keep(first)
    states.keep(second)
    saved = SavedStates(path).of_models
    assert Drift(ONE, 0.05, saved).summary() == first.summary() and first.summary()[0]["parts"] == 2
    assert Drift(TWO, 0.05, saved).summary() == second.summary()
    assert Drift(ONE, 0.1, saved).summary()[0]["parts"] == 0
    time = path.stat().st_mtime_ns
    states.keep(first)  # nothing new
    assert path.stat().st_mtime_ns == time
    saved[first.key][""]["parts"] = "many"
    with pytest.raises(StateError, match="damaged"):
        Drift(ONE, 0.05, saved)
    for text in ("", "[]", '{"format": 2, "models": {}}', '{"format": 1, "models": {"a": 1}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="monitor.json: can't be read"):
            SavedStates(path)


def test_a_full_disk_ends_no_server(tmp_path, caplog):
    states, drift = SavedStates(tmp_path / "gone/monitor.json"), Drift(ONE, 0.05, {})
    states.keep(drift)
    assert "could not be saved" in caplog.text
    (tmp_path / "gone").mkdir()
    states.keep(drift)
    assert SavedStates(states.path).of_models == {drift.key: drift.state()}


def test_values_beyond_floats_are_json(monkeypatch):
    drift = Drift(ONE, 0.05, {})
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
