"""The file that keeps what a server's monitors have seen: over restarts, exchanges of models, damage and full disks."""

import dataclasses
import json
import shutil
from itertools import islice

from damaged_states import damaged_values, without_digest
from diffad.monitoring.state_digest import with_digest
from diffad.serve.drift import CategoryMonitors
from diffad.serve.saved_states import SavedStates
from diffad.serve.settings import ServeSettings
from drift_rows import ONE, REFERENCE, TWO, features_of, rows
from running import form, png, running
from stub_model import save_stub


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


def damaged_states(drift: CategoryMonitors):
    """Contents of files of states in which one thing is lost, of another type or not finite, and such that are cut short."""
    content = with_digest({"format": 1, "models": {drift.key: drift.state()}})
    text = json.dumps(content)
    yield from (text[: len(text) * share // 10] for share in range(10))
    yield from ("[]", "7", '{"format": 1}', text.replace('"parts": ', '"parts": 1', 1), text.replace(drift.key, "x"))
    yield from map(json.dumps, islice(damaged_values(content), 0, None, 23))  # all of a monitor's own are tested with it


def test_a_damaged_state_is_kept_aside_and_no_part_of_it_taken_over(tmp_path, caplog):
    info = dataclasses.replace(TWO, references=(REFERENCE, None))
    drift = CategoryMonitors(info, 0.05, {}, with_feedback=True)
    features = features_of(3, 0.0)
    drift.update(rows(*[80.0] * 3, category="nut"), features)
    drift.update(rows(50.0, 300.0, category="bolt"))
    path, fresh = tmp_path / "monitor.json", None
    for text in damaged_states(drift):
        for copy in tmp_path.glob("monitor.json*"):
            copy.unlink()
        path.write_text(text)
        caplog.clear()
        states = SavedStates(path)
        found = CategoryMonitors(info, 0.05, states.of_models, with_feedback=True)
        if found.damage is not None:
            states.begin_anew(found.damage, found.key)
        fresh = fresh or CategoryMonitors(info, 0.05, {}, with_feedback=True).state()
        assert found.state() == fresh, text
        (line,) = caplog.messages
        assert f"the monitor begins anew: {path}: " in line and line.endswith(f"it is kept as {path}.damaged"), line
        assert (tmp_path / "monitor.json.damaged").read_text() == text
        states.take(found)
        states.write()
        assert SavedStates(path).of_models == {found.key: found.state()}


def test_damage_of_a_former_release_is_told_without_a_digest(tmp_path, caplog):
    first, second = CategoryMonitors(ONE, 0.05, {}), CategoryMonitors(TWO, 0.05, {})
    for drift in (first, second):
        drift.update(rows(80.0, 300.0, category=list(drift.monitors)[-1]))
    states = {drift.key: {name: without_digest(state) for name, state in drift.state().items()} for drift in (first, second)}
    states[second.key]["bolt"]["parts"] = "many"
    (tmp_path / "monitor.json").write_text(json.dumps({"format": 1, "models": states}))
    saved = SavedStates(tmp_path / "monitor.json")
    found = CategoryMonitors(TWO, 0.05, saved.of_models)
    assert "many" in found.damage and found.state() == CategoryMonitors(TWO, 0.05, {}).state()
    saved.begin_anew(found.damage, found.key)
    assert CategoryMonitors(ONE, 0.05, saved.of_models).summary() == first.summary()  # the other model's is intact
    saved.take(found)
    saved.write()
    assert SavedStates(saved.path).of_models.keys() == {first.key, found.key}


def test_a_damaged_state_that_cannot_be_copied_is_not_overwritten(tmp_path, caplog, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    (tmp_path / "monitor.json").write_text("{")
    states = SavedStates(tmp_path / "monitor.json")
    states.take(CategoryMonitors(ONE, 0.05, states.of_models))
    states.write()
    assert (tmp_path / "monitor.json").read_text() == "{" and "in memory alone" in caplog.text
    assert list(tmp_path.iterdir()) == [tmp_path / "monitor.json"]


def test_copies_of_damaged_states_do_not_replace_each_other(tmp_path):
    for text in ("{", "[", "1"):
        (tmp_path / "monitor.json").write_text(text)
        SavedStates(tmp_path / "monitor.json")
    copies = ("monitor.json.damaged", "monitor.json.damaged-2", "monitor.json.damaged-3")
    assert [(tmp_path / name).read_text() for name in copies] == ["{", "[", "1"]


def test_a_server_with_a_damaged_state_judges_and_monitors(tmp_path, capsys):
    settings = ServeSettings(monitor_state=tmp_path / "monitor.json")
    model = save_stub(tmp_path / "model")
    with running(model, settings) as server:
        server.client.post("/predict", files=form(png(120))).raise_for_status()
    text = settings.monitor_state.read_text()
    settings.monitor_state.write_text(text[:-300])
    with running(model, settings) as server:
        server.client.post("/predict", files=form(png(120), png(121))).raise_for_status()
        assert server.client.get("/monitor").json()["categories"][0]["parts"] == 2
    assert (tmp_path / "monitor.json.damaged").read_text() == text[:-300]
    with running(model, settings) as server:
        assert server.client.get("/monitor").json()["categories"][0]["parts"] == 2


def test_states_of_models_that_no_longer_serve_keep_no_features(tmp_path):
    info = dataclasses.replace(ONE, references=(REFERENCE,))
    first, second = (CategoryMonitors(dataclasses.replace(info, digest=name), 0.05, {}) for name in ("a", "b"))
    states = SavedStates(tmp_path / "monitor.json")
    for drift in (first, second):
        drift.update(rows(*[80.0] * 20), features_of(20, 0.0))
        states.take(drift)
        states.write()
    saved = SavedStates(states.path).of_models
    waiting = {key: state[""]["embedding_test"]["waiting"] for key, state in saved.items()}
    assert waiting[first.key] == "" and len(waiting[second.key]) > 20 * 8
    again = CategoryMonitors(dataclasses.replace(info, digest="a"), 0.05, saved)
    assert again.summary() == first.summary() and not again.monitors[None].embedding_test.waiting


def test_a_full_disk_ends_no_server(tmp_path, caplog):
    states, drift = SavedStates(tmp_path / "gone/monitor.json"), CategoryMonitors(ONE, 0.05, {})
    states.take(drift)
    states.write()
    assert "could not be saved" in caplog.text
    (tmp_path / "gone").mkdir()
    states.take(drift)
    states.write()
    assert SavedStates(states.path).of_models == {drift.key: drift.state()}
