"""The monitor inside a server."""

import dataclasses
import hashlib
import io
import json
import math
import time

import diffad.serve.drift
import numpy as np
import pytest
from diffad.monitoring.drift_monitor import DriftMonitor
from diffad.monitoring.feedback import FeedbackRecord
from diffad.monitoring.feedback_list import FeedbackList
from diffad.monitoring.references import GROUPED
from diffad.scoring.conformal import threshold_rank
from diffad.serve.drift import CategoryMonitors
from diffad.serve.messages import SentImage
from diffad.serve.metrics import Metrics
from diffad.serve.saved_states import SavedStates
from diffad.serve.settings import ServeSettings
from drift_rows import ONE, REFERENCE, TWO, digest, features_of, rows
from running import form, png, running
from stub_model import SCORES, save_stub, textured


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


def test_embeddings_are_tested_where_the_model_knows_its_calibration_images():
    info = dataclasses.replace(TWO, references=(REFERENCE, None))
    drift = CategoryMonitors(info, 0.05, {})
    reference = REFERENCE.features[: threshold_rank(len(SCORES), 0.05) - 1]
    expected = DriftMonitor(np.array(SCORES), 0.05, 0.025, reference_features=reference)
    features = features_of(30, 0.0)
    drift.update(rows(*[80.0] * 30, category="nut"), features)
    drift.update(rows(50.0, category="bolt"), features[:1])
    while (work := drift.work(lambda category: [])) is not None:
        work()
    for of_part in features:
        expected.update(80.0, of_part)
    nut, bolt = drift.summary()
    assert nut["embeddings"] == expected.state.looks and len(nut["embeddings"]) == 1 and not nut["embeddings_not_tested"]
    assert nut["limits"] == expected.state.limits and nut["limits"]["embeddings"] == pytest.approx(1 / (0.2 * 0.025))
    assert not bolt["embeddings"] and "does not hold the features" in bolt["embeddings_not_tested"]
    assert "embeddings" not in bolt["limits"]


def test_an_alarm_of_embeddings_is_explained_and_lasts(tmp_path, caplog):
    info = dataclasses.replace(ONE, references=(REFERENCE,))
    drift = CategoryMonitors(info, 0.05, {})
    drift.update(rows(*np.linspace(40, 130, 26)), features_of(26, 20.0))
    drift.work(lambda category: [])()
    few, many = ([SentImage(f"{i}.png", of_image(textured(90, i, 20.0))) for i in range(count)] for count in (7, 12))
    assert drift.monitors[None].alarms == {"embeddings": 26} and drift.work(lambda category: few) is None
    drift.work(lambda category: many)()
    (found,) = drift.summary()
    assert any("more contrast" in suggestion for suggestion in found["suggestions"])
    assert drift.work(lambda category: many) is None
    assert [text.partition(":")[0] for text in caplog.messages] == [
        "ALARM of the monitor (embeddings)",
        "changed in the latest images (embeddings)",
    ]
    drift.show(metrics := Metrics())
    value = metrics.registry.get_sample_value
    assert value("diffad_monitor_alarm", {"category": "", "test": "embeddings"}) == 26
    p_value, limit = found["embeddings"][-1]
    assert value("diffad_monitor_p_value", {"category": "", "test": "embeddings"}) == p_value <= limit
    labels = {"category": "", "statistic": "contrast", "change": "more contrast"}
    assert value("diffad_monitor_suggestion", labels) > 1
    saved = json.loads(json.dumps({drift.key: drift.state()}))
    caplog.clear()
    again = CategoryMonitors(info, 0.05, saved)
    assert again.summary() == drift.summary()
    again.update(rows(60.0), features_of(1, 20.0))
    assert again.work(lambda category: many) is None and not caplog.messages
    other = CategoryMonitors(dataclasses.replace(info, digest="another"), 0.05, saved)
    other.show(metrics)  # which forgets the alarm
    assert other.summary()[0]["parts"] == 0
    assert value("diffad_monitor_alarm", {"category": "", "test": "embeddings"}) is None
    # A state that was saved without the test is of another monitor
    former = CategoryMonitors(ONE, 0.05, {})
    caplog.clear()
    CategoryMonitors(info, 0.05, {former.key: former.state()})
    assert caplog.messages == ["the monitor begins anew: reference False there, True now"]


def of_image(image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def test_the_log_tells_each_alarm_once_without_images_and_after_a_restart(caplog):
    drift = CategoryMonitors(TWO, 0.05, {}, with_feedback=True)
    said = "ALARM of the monitor of bolt (%s): production is not as calibrated"
    drift.update(rows(*np.arange(300.0, 330.0), category="bolt"))
    assert caplog.messages == [said % "reject rate"]
    drift.update(rows(330.0, category="bolt"))
    assert drift.work(lambda category: []) is None and len(caplog.messages) == 1
    drift.take_feedback(wrongly_rejected(*np.arange(300.0, 330.0)))
    assert caplog.messages[1:] == [said % "feedback"]
    caplog.clear()
    again = CategoryMonitors(TWO, 0.05, {drift.key: json.loads(json.dumps(drift.state()))}, with_feedback=True)
    again.update(rows(331.0, category="bolt"))
    assert not caplog.messages
    again.update(rows(*[5.0] * 100, category="bolt"))
    assert caplog.messages == [said % "scores"]


def test_an_alarm_while_another_is_explained_is_explained_later():
    drift = CategoryMonitors(dataclasses.replace(ONE, references=(REFERENCE,)), 0.05, {})
    drift.update(rows(*np.linspace(40, 130, 26)), features_of(26, 20.0))
    drift.work(lambda category: [])()
    images = [SentImage(f"{i}.png", of_image(textured(90, i, 20.0))) for i in range(12)]
    explain = drift.work(lambda category: images)
    drift.update(rows(*[300.0] * 30), [None] * 30)
    assert drift.monitors[None].alarms.keys() == {"embeddings", "reject rate"}
    explain()
    assert drift.monitors[None].needs_explanation and drift.work(lambda category: images) is not None


def test_a_server_tests_embeddings_over_a_restart(tmp_path):
    model = save_stub(tmp_path / "model", embeddings=True)
    settings = ServeSettings(monitor_state=tmp_path / "monitor.json")
    levels = np.random.default_rng(1).integers(40, 130, 64)
    images = [of_image(textured(int(level), i, 20.0 * (i >= 14))) for i, level in enumerate(levels)]

    def send(server, chosen) -> dict:
        answer = server.client.post("/predict", files=form(*chosen)).json()
        assert "features" not in answer["images"][0]
        return server.client.get("/monitor").json()["categories"][0]

    with running(model, settings) as server:
        assert send(server, images[:14])["embeddings"] == []
    with running(model, settings) as server:
        assert send(server, images[14:40])["parts"] == 40  # with those before the restart
        send(server, images[40:])
        stop = time.monotonic() + 60
        while not (found := server.client.get("/monitor").json()["categories"][0])["suggestions"]:
            assert time.monotonic() < stop, found
            time.sleep(0.02)
        assert found["alarms"].keys() == {"embeddings"} and 25 <= found["alarms"]["embeddings"] <= 64
        assert any("more contrast" in suggestion for suggestion in found["suggestions"])
        assert server.metric("diffad_monitor_alarm", category="", test="embeddings") == found["alarms"]["embeddings"]
    with running(model, settings) as server:
        assert server.client.get("/monitor").json()["categories"] == [found]


def test_a_closer_look_that_fails_is_tried_again_with_the_next_image(tmp_path, monkeypatch, capsys):
    tried = []

    def fail(*arguments):
        tried.append(1)
        raise OSError("no more memory")

    monkeypatch.setattr(diffad.serve.drift, "suggested_changes", fail)
    images = [of_image(textured(90, i, 20.0)) for i in range(26)]
    with running(save_stub(tmp_path / "model", embeddings=True)) as server:
        for requests in (1, 2, 3):
            server.client.post("/predict", files=form(*images)).raise_for_status()
            stop = time.monotonic() + 60
            while len(tried) < requests:
                assert time.monotonic() < stop
                time.sleep(0.02)
        time.sleep(0.3)
        assert len(tried) == 3 and "could not look closer" in capsys.readouterr().err
        (found,) = server.client.get("/monitor").json()["categories"]
        assert found["parts"] == 78 and found["changed"] and found["suggestions"] == []


def test_of_a_model_of_groups_parts_are_compared_with_single_images(caplog):
    single = tuple(score - 5 for score in SCORES)
    grouped = dataclasses.replace(ONE, single_scores=(single,))
    drift = CategoryMonitors(grouped, 0.05, {})
    expected = DriftMonitor(np.array(SCORES), 0.05, single_scores=np.array(single))
    for score in (50.0, 128.0, 133.0, 170.0):
        drift.update(rows(score))
        expected.update(score)
    assert drift.monitors[None].to_dict() == expected.to_dict()
    assert caplog.messages == [f"the monitor: {GROUPED}"]
    # Keys of other models are as earlier releases made them
    former = hashlib.sha256(repr((ONE, 0.05)).encode()).hexdigest()[:16]
    one = CategoryMonitors(dataclasses.replace(ONE, single_scores=(None,)), 0.05, {})
    assert "single" not in repr(ONE) and one.key == former != drift.key
    assert len(caplog.messages) == 1


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
