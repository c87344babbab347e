"""What the monitor of an inspection goes on from: its own whole state and the parts since, over kills, damage and settings."""

import json
from itertools import islice

import numpy as np
import pytest
from damaged_states import damaged_values, without_digest
from diffad.monitoring.drift_monitor import DriftMonitor
from diffad.monitoring.state_digest import with_digest
from diffad.scoring.conformal import threshold_rank
from diffad.watch.drift import DriftSettings, JournaledMonitor
from monitored_line import DEFAULTS, Line
from stub_model import stub_features, textured
from watch_stub import StubModel, StubWithFeatures


def expected(scores: list[float]) -> dict:
    monitor = DriftMonitor(StubModel.calibration.calibration_scores_of())
    for score in scores:
        monitor.update(score)
    return monitor.to_dict()


@pytest.mark.parametrize("parts", [0, 1, 99, 100, 101])
def test_after_a_kill_it_goes_on_as_if_nothing_had_happened(tmp_path, parts):
    scores = [(7.3 * i) % 97 for i in range(parts)]
    line = Line(tmp_path / "journal")
    line.judge(scores)
    line.killed()
    line = Line(tmp_path / "journal")
    assert line.drift.monitor.to_dict() == expected(scores)
    line.judge([50.0, 120.0])
    assert line.drift.monitor.to_dict() == expected([*scores, 50.0, 120.0])


class Several(StubWithFeatures):
    """Of two categories with the same scores, so that only their names tell them apart."""

    digest, category_names = "several", ["nut", "bolt"]

    def category_indices(self, category, count):
        return [self.category_names.index(category)] * count


def test_a_monitor_of_one_category_is_not_gone_on_from_with_another(tmp_path):
    scores, images = [50.0] * 5, [textured(80, seed) for seed in range(5)]
    line = Line(tmp_path / "journal", pipe=Several(), category="nut")
    line.judge(scores, images=images)
    line.killed()
    bolt = Line(tmp_path / "journal", pipe=Several(), category="bolt")
    assert bolt.lines == ["the monitor begins anew: category nut there, bolt now"] and bolt.drift.monitor.parts == 0
    bolt.killed()
    again = Line(tmp_path / "journal", pipe=Several(), category="bolt")
    assert not again.lines


def test_parts_that_no_monitor_saw_are_left_out_later_and_hold_nothing_back(tmp_path):
    scores, images = [50.0] * 5, [textured(80, seed) for seed in range(5)]
    line = Line(tmp_path / "journal", pipe=Several(), category="nut")
    line.judge(scores, images=images)
    line.killed()
    without = Line(tmp_path / "journal", pipe=Several())
    assert without.judge([500.0] * 30) == [None] * 30 and without.drift.saved_number is None
    without.killed()
    again = Line(tmp_path / "journal", pipe=Several(), category="nut")
    assert again.lines == ["the monitor goes on; it leaves out what was judged without it (30 of the kept results)"]
    assert again.drift.monitor.parts == 5 and again.drift.saved_number == 0
    again.judge(scores[:1], images=images[:1])
    again.killed()
    without = Line(tmp_path / "journal", pipe=Several())
    without.journal.forget(1, without.drift.saved_number)
    assert [result["number"] for result in without.journal.results(0, 99, 99)] == [36]


def line_with_every_value(path) -> Line:
    line = Line(path, pipe=StubWithFeatures())
    scores = [float(score) for score in np.random.default_rng(0).uniform(5, 95, 30)]
    line.judge(scores, images=[textured(80, seed, 20.0) for seed in range(30)])
    line.drift._save(20)
    return line


def test_a_damaged_state_is_kept_aside_and_no_part_of_it_taken_over(tmp_path):
    line = line_with_every_value(tmp_path / "journal")
    saved = line.journal.saved_monitor()
    assert saved["state"]["alarms"] and saved["state"]["suggestions"]
    text = json.dumps(saved)
    fresh = DriftMonitor(
        StubWithFeatures.calibration.calibration_scores_of(), reference_features=line.drift.monitor.embedding_test.reference
    ).to_dict()
    damaged = [text[: len(text) * share // 10] for share in range(10)]
    damaged += [json.dumps(one) for one in islice(damaged_values(saved), 0, None, 23)]
    without_state = {name: value for name, value in saved.items() if name != "state"}
    damaged += [json.dumps(one | {"state": saved["state"]}) for one in damaged_values(without_state) if "digest" in one]
    former = {name: saved[name] for name in ("model", "category", "state")}
    former["state"] = without_digest(former["state"])
    later = with_digest(saved["state"] | {"format": 2})
    about = {name: value for name, value in without_state.items() if name != "digest"} | {"digest_of_state": later["digest"]}
    damaged += [
        json.dumps(with_digest(about) | {"state": later}),
        json.dumps(former),
        json.dumps(former | {"number": "x"}),
        json.dumps(saved | {"state": fresh}),
    ]
    for number, value in enumerate(damaged, 1):
        with line.journal._transaction() as run:
            run("INSERT OR REPLACE INTO about VALUES ('monitor', ?)", (value,))
        lines = []
        monitored = JournaledMonitor(line.journal, StubWithFeatures(), DEFAULTS, report=lines.append)
        assert monitored.monitor.to_dict() == fresh, value
        (said,) = lines
        start = f"the monitor begins anew: {tmp_path / 'journal'}: its state is "
        assert said.startswith(start) and said.endswith(f"it is kept there as 'kept monitor {number}'"), said
        assert line.journal.saved_monitor()["state"] == fresh
        assert monitored.update({"path": "x", "score": 50.0, "label": "good"}, np.zeros(2)) == "as calibrated"


def test_lost_features_of_parts_begin_the_monitor_anew_and_stop_nothing(tmp_path):
    line = line_with_every_value(tmp_path / "journal")
    with line.journal._transaction() as run:
        run("DELETE FROM features WHERE number = 25")
    line.killed()
    again = Line(tmp_path / "journal", pipe=StubWithFeatures())
    assert "needs its features" in again.lines[0] and again.drift.monitor.parts == 0
    assert again.judge([50.0], images=[textured(80, 0)]) == ["as calibrated"]


@pytest.mark.parametrize("parts", [0, 1, 24, 99, 100, 131])
def test_embeddings_go_on_after_a_kill_with_the_parts_since_the_latest_state(tmp_path, parts):
    scores = [float(score) for score in np.random.default_rng(0).uniform(5, 95, parts + 30)]
    images = [textured(80, seed) for seed in range(parts + 30)]
    line = Line(tmp_path / "journal", pipe=StubWithFeatures())
    assert not line.lines
    line.judge(scores[:parts], images=images[:parts])
    line.killed()
    line = Line(tmp_path / "journal", pipe=StubWithFeatures())
    line.judge(scores[parts:], images=images[parts:])
    calibration = StubWithFeatures.calibration
    reference = calibration.parts.features[: threshold_rank(60, 0.05) - 1]
    expected = DriftMonitor(calibration.calibration_scores_of(), reference_features=reference)
    for score, image in zip(scores, images, strict=True):
        expected.update(score, stub_features(image).astype(np.float32))
    line.drift.monitor.test_embeddings()
    assert line.drift.monitor.to_dict() == expected.to_dict() and expected.state.looks
    saved = line.journal.saved_monitor()["number"]  # features are kept of later parts alone
    assert [line.journal.features(n) is not None for n in range(1, parts + 31)] == [n > saved for n in range(1, parts + 31)]


def test_another_model_or_setting_begins_anew(tmp_path):
    line = Line(tmp_path / "journal")
    line.judge([50.0] * 5)
    line.killed()
    other = Line(tmp_path / "journal", pipe=type("Other", (StubModel,), {"digest": "other"})())
    assert other.lines[1:] == ["the monitor begins anew: another model"] and other.drift.monitor.parts == 0
    other.killed()
    setting = Line(tmp_path / "journal", DriftSettings(level=0.01), type("Other", (StubModel,), {"digest": "other"})())
    assert setting.lines[1:] == ["the monitor begins anew: level 0.05 there, 0.01 now"]
