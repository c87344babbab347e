"""The monitor inside a server."""

import dataclasses
import json
import math

import numpy as np
import pytest
from diffad.monitoring.drift_monitor import DriftMonitor
from diffad.serve.drift import Drift
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
    drift, expected = Drift(TWO, 0.05, None), DriftMonitor(np.array(SCORES), 0.1, 0.025)
    for score in (50.0, 70.0, 170.0):
        drift.update(rows(score, category="bolt"))
        expected.update(score)
    drift.update(rows(50.0, label="unknown"))
    nut, bolt = drift.summary()
    assert nut["parts"] == 0 and bolt["parts"] == 3 and bolt["rejected"] == 1
    assert bolt["evidence"] == expected.state.evidence and bolt["limits"] == expected.state.limits


def test_it_goes_on_after_a_restart_and_keeps_models_apart(tmp_path):
    state = tmp_path / "monitor.json"
    first = Drift(ONE, 0.05, state)
    first.save()
    assert not state.exists()  # there is nothing to keep yet
    first.update(rows(50.0, 60.0))
    first.save()
    Drift(TWO, 0.05, state).save()
    second = Drift(TWO, 0.05, state)
    second.update(rows(50.0, category="nut"))
    second.save()
    again = Drift(ONE, 0.05, state)
    assert again.summary() == first.summary() and again.summary()[0]["parts"] == 2
    assert Drift(TWO, 0.05, state).summary()[0]["parts"] == 1
    with pytest.raises(ValueError, match="monitor.json: can't go on from it: level 0.05 there, 0.1 now; name another"):
        Drift(ONE, 0.1, state)
    for text in ("", "[]", '{"format": 2, "models": {}}', '{"format": 1, "models": {"a": 1}}'):
        state.write_text(text)
        with pytest.raises(ValueError, match="monitor.json: can't be read"):
            Drift(ONE, 0.05, state)


def test_values_beyond_floats_are_json(monkeypatch):
    drift = Drift(ONE, 0.05, None)
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
