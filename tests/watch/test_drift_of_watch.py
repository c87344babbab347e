"""The drift monitor within an inspection: what it sees, over restarts and kills."""

import threading

import numpy as np
from diffad.monitoring import embedding_test
from diffad.monitoring.references import GROUPED, NO_FEATURES
from diffad.watch import drift
from diffad.watch.drift import DriftSettings, JournaledMonitor
from diffad.watch.journal import PartJournal
from monitored_line import DEFAULTS, Line
from stub_model import stub_features, textured
from watch_stub import KnownImages, ListSink, StubModel, StubWithFeatures, eventually, folder_inspection, save_grey

NOT_TESTED = "embeddings are not tested"


def test_an_alarm_is_reported_once_and_stays(tmp_path):
    line = Line(tmp_path / "journal")
    said = line.judge([99.0] * 60)
    assert said[0] == "as calibrated" and said[-1] == "changed"
    assert [text.partition(":")[0] for text in line.lines] == [NOT_TESTED, "ALARM of the monitor (scores)"]
    line.killed()
    again = Line(tmp_path / "journal")
    assert again.judge([10.0]) == ["changed"]
    again.killed()
    new = Line(tmp_path / "journal", DriftSettings(reset=True))
    assert new.judge([10.0]) == ["as calibrated"] and new.drift.monitor.parts == 1
    new.killed()
    later = Line(tmp_path / "journal")
    assert later.drift.monitor.parts == 1


def test_an_alarm_of_embeddings_is_explained_from_the_latest_images(tmp_path):
    line = Line(tmp_path / "journal", pipe=StubWithFeatures())
    scores = [float(score) for score in np.random.default_rng(0).uniform(5, 95, 30)]
    line.judge(scores, images=[textured(80, seed, 20.0) for seed in range(30)])
    expected = ["ALARM of the monitor (embeddings)", "changed in the latest images (embeddings)"]
    assert [text.partition(":")[0] for text in line.lines] == expected
    assert "more contrast" in line.lines[1] and line.drift.monitor.alarms == {"embeddings": 25}
    line.killed()
    # Killed before the alarm was in a saved state, it raises it again from the journal. Later images explain it
    again = Line(tmp_path / "journal", pipe=StubWithFeatures())
    again.drift.monitor.test_embeddings()
    assert 25 <= again.drift.monitor.alarms["embeddings"] <= 30 and again.drift.monitor.needs_explanation
    images = [textured(80, seed, 20.0) for seed in range(10)]
    assert again.judge([50.0] * 7, images=images) == ["changed"] * 7 and again.drift.monitor.needs_explanation
    again.judge([50.0] * 3, images=images)
    assert [text.partition(":")[0] for text in again.lines] == expected and "more contrast" in again.lines[1]


def explanation_held_back(monkeypatch, answers=()) -> threading.Event:
    """Has explanations of alarms wait until the event, then fail as often as there are answers."""
    goes_on, left, explain = threading.Event(), list(answers), drift.suggested_changes

    def wait(*arguments):
        assert goes_on.wait(60)
        if left:
            raise left.pop()
        return explain(*arguments)

    monkeypatch.setattr(drift, "suggested_changes", wait)
    return goes_on


def test_no_verdict_waits_for_what_changed_and_nothing_of_it_is_lost(tmp_path, monkeypatch):
    goes_on = explanation_held_back(monkeypatch)
    lines = []
    with PartJournal(tmp_path / "journal", "camera") as journal:
        monitored = JournaledMonitor(journal, StubWithFeatures(), DEFAULTS, report=lines.append)

        def judge(score: float, count: int) -> None:
            for seed in range(count):
                image = textured(80, seed)
                row = {"path": "x", "score": score, "label": "defective" if score > 100 else "good"}
                monitored.update(row, stub_features(image), image)

        judge(95.0, 24)
        assert lines == ["ALARM of the monitor (scores): production is not as calibrated; see `diffad monitor`"]
        judge(300.0, 24)  # another alarm, while the first one is explained
        assert len(lines) == 2 and "(reject rate)" in lines[1]
        goes_on.set()
        monitored.finish()  # though no further part comes
        expected = ["changed in the latest images (scores)", "changed in the latest images (scores, reject rate)"]
        assert [line.partition(":")[0] for line in lines[2:]] == expected
        assert not monitored.monitor.needs_explanation
        monitored.finish()
        assert len(lines) == 4


def test_what_changed_that_can_not_be_told_is_tried_again(tmp_path, monkeypatch):
    explanation_held_back(monkeypatch, [MemoryError("no more")] * 3).set()
    line = Line(tmp_path / "journal", pipe=StubWithFeatures())
    images = [textured(80, seed) for seed in range(30)]
    line.judge([99.0] * 29, images=images[:29])
    failed = "the monitor could not say what changed (MemoryError: no more); it tries again with the next part"
    assert failed in line.lines and line.drift.monitor.parts == 29
    line.judge([99.0], images=images[29:])
    assert "changed in the latest images" in line.lines[-1] and line.lines.count(failed) == 3


def test_an_inspection_ends_with_all_said(tmp_path):
    folder = tmp_path / "camera"
    save_grey(folder, [95] * 24)  # the alarm is raised within the last parts
    with PartJournal(tmp_path / "journal", str(folder.resolve())) as journal:
        lines = []
        monitored = JournaledMonitor(journal, StubWithFeatures(), DEFAULTS, report=lines.append)
        folder_inspection(folder, journal, [ListSink()], load=StubWithFeatures, drift=monitored).run()
        assert [line.partition(":")[0] for line in lines] == [
            "ALARM of the monitor (scores)",
            "changed in the latest images (scores)",
        ]


def held_back(monkeypatch, answer) -> threading.Event:
    """Has comparisons of embeddings wait until the event, then do what `answer` does."""
    goes_on = threading.Event()

    def p_value(*arguments) -> float:
        assert goes_on.wait(60)
        return answer()

    monkeypatch.setattr(embedding_test, "permutation_p_value", p_value)
    return goes_on


def test_no_verdict_waits_for_a_comparison_of_embeddings(tmp_path, monkeypatch):
    goes_on = held_back(monkeypatch, lambda: 0.0)
    folder = tmp_path / "camera"
    save_grey(folder, np.random.default_rng(2).integers(10, 90, 40).tolist())
    with PartJournal(tmp_path / "journal", str(folder.resolve())) as journal:
        lines, sink = [], ListSink()
        monitored = JournaledMonitor(journal, StubWithFeatures(), DriftSettings(), report=lines.append)
        folder_inspection(folder, journal, [sink], load=StubWithFeatures, drift=monitored).run()
        assert [result["monitor"] for result in sink.results] == ["as calibrated"] * 40
        assert "embeddings" not in monitored.monitor.alarms and not [line for line in lines if "embeddings" in line]
        goes_on.set()
        # The alarm is said though no further part comes
        eventually(lambda: any("ALARM of the monitor (embeddings)" in line for line in lines))


def test_a_comparison_that_fails_is_said_and_made_again_with_the_next_part(tmp_path, monkeypatch):
    failing, features = [True], [stub_features(textured(80, seed)) for seed in range(26)]

    def p_value(*arguments) -> float:
        if failing:
            raise MemoryError("no more")
        return 0.5

    monkeypatch.setattr(embedding_test, "permutation_p_value", p_value)
    with PartJournal(tmp_path / "journal", "camera") as journal:
        lines = []
        monitored = JournaledMonitor(journal, StubWithFeatures(), DriftSettings(), report=lines.append)
        rows = [{"path": "x", "score": score, "label": "good"} for score in np.random.default_rng(0).uniform(5, 95, 26)]
        for row, of_part in zip(rows[:25], features[:25], strict=True):
            monitored.update(row, of_part)
        eventually(lambda: lines and not monitored._looking.is_alive())
        text = "the monitor could not compare embeddings (MemoryError: no more); it tries again with the next part"
        assert lines == [text] and not monitored.monitor.state.looks
        failing.clear()
        monitored.update(rows[25], features[25])
        eventually(lambda: len(monitored.monitor.state.looks) == 1)


def test_features_are_kept_only_where_embeddings_are_tested(tmp_path):
    several = type("Several", (StubWithFeatures,), {"category_names": ["nut", "bolt"]})
    unknown = type("Unknown", (StubWithFeatures,), {"calibration": StubModel.calibration})
    for name, load, kept in (("one", StubWithFeatures, True), ("several", several, False), ("unknown", unknown, False)):
        folder = tmp_path / name
        save_grey(folder, [60] * 3)
        with PartJournal(tmp_path / f"{name} journal", str(folder.resolve())) as journal:
            monitored = JournaledMonitor(journal, load(), DriftSettings())
            folder_inspection(folder, journal, [ListSink()], load=load, drift=monitored).run()
            assert journal.next_number == 4 and monitored.tests_embeddings == kept
            assert [journal.features(number) is not None for number in (1, 2, 3)] == [kept] * 3


def test_why_embeddings_are_not_tested_is_said(tmp_path):
    assert Line(tmp_path / "journal").lines == [f"embeddings are not tested: {NO_FEATURES}"]


class OfGroups(KnownImages):
    def single_scores_of(self, category=0) -> np.ndarray:
        return self.calibration_scores_of() - 3


def test_of_a_model_of_groups_parts_are_compared_with_single_images(tmp_path):
    pipe = type("Grouped", (StubWithFeatures,), {"calibration": OfGroups()})()
    line = Line(tmp_path / "journal", pipe=pipe)
    assert line.lines == [f"the monitor: {GROUPED}"]
    monitor, scores = line.drift.monitor, OfGroups().calibration_scores_of()
    assert (monitor.threshold, monitor.cut) == (scores[57], scores[57] - 3)
    line.judge([scores[57] - 3.5, scores[57] - 2.5], images=[textured(80, 0)] * 2)
    assert monitor.parts == 2 and monitor.score_test.parts == 1


def test_an_inspection_tests_embeddings(tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    levels = np.random.default_rng(2).integers(10, 90, 30)
    for i, level in enumerate(levels):
        textured(int(level), i, 12.0).save(folder / f"{i:02d}.png")
    with PartJournal(tmp_path / "journal", str(folder.resolve())) as journal:
        monitored, sink = JournaledMonitor(journal, StubWithFeatures(), DriftSettings()), ListSink()
        folder_inspection(folder, journal, [sink], load=StubWithFeatures, drift=monitored).run()
        monitored.monitor.test_embeddings()  # or waits for the thread that does
        textured(50, 30, 12.0).save(folder / "30.png")
        folder_inspection(folder, journal, [sink], load=StubWithFeatures, drift=monitored).run()
        assert len(sink.results) == 31 and "embeddings" in monitored.monitor.alarms and monitored.monitor.suggestions
        assert sink.results[-1]["monitor"] == "changed" and "features" not in sink.results[0]


def test_parts_without_a_verdict_or_of_unknown_products_are_left_out(tmp_path):
    line = Line(tmp_path / "journal")
    line.judge([500.0] * 3, label="unknown")
    assert line.drift.update({"path": "x", "error": "unreadable"}) == "as calibrated"
    assert line.drift.monitor.parts == 0


def test_of_several_categories_one_is_monitored_or_none(tmp_path):
    pipe = type("Several", (StubModel,), {"category_names": ["nut", "bolt"]})()
    line = Line(tmp_path / "journal", pipe=pipe)
    assert line.drift.monitor is None and "name the one to monitor with --category" in line.lines[0]
    assert line.judge([50.0] * 101) == [None] * 101


def test_results_carry_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "SAVED_EVERY", 7)
    folder = tmp_path / "camera"
    save_grey(folder, [99] * 40)
    with PartJournal(tmp_path / "journal", str(folder.resolve())) as journal:
        sink = ListSink()
        monitored = JournaledMonitor(journal, StubModel(), DriftSettings())
        folder_inspection(folder, journal, [sink], drift=monitored).run()
        said = [result["monitor"] for result in sink.results]
        assert said[0] == "as calibrated" and said[-1] == "changed" and len(said) == 40
        assert journal.saved_monitor()["number"] == 35
