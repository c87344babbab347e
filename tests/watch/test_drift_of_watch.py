"""The drift monitor within an inspection: what it sees, over restarts and kills."""

import pytest
from diffad.monitoring.drift_monitor import DriftMonitor
from diffad.watch import drift
from diffad.watch.drift import DriftSettings, JournaledMonitor
from diffad.watch.journal import PartJournal
from diffad.watch.sources.part import PartKey
from watch_stub import ListSink, StubModel, folder_inspection, save_grey

DEFAULTS, STUB = DriftSettings(), StubModel()


class Line:
    """Judges parts of given scores as the inspection does, and can be killed after any."""

    def __init__(self, path, settings=DEFAULTS, pipe=STUB):
        self.journal, self.lines = PartJournal(path, "camera"), []
        self.drift = JournaledMonitor(self.journal, pipe, settings, report=self.lines.append)

    def judge(self, scores: list[float], label: str | None = None) -> list[str]:
        said = []
        for score in scores:
            number = self.journal.next_number
            row = {"path": "x", "score": score, "label": label or ("defective" if score > 100 else "good")}
            said.append(self.drift.update(row))
            self.journal.append(PartKey(f"{number}", 1, number), row | {"number": number})
            self.drift.keep(number)
        return said

    def killed(self) -> None:
        self.journal._connection.close()


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


def test_an_alarm_is_reported_once_and_stays(tmp_path):
    line = Line(tmp_path / "journal")
    said = line.judge([99.0] * 60)
    assert said[0] == "as calibrated" and said[-1] == "changed"
    assert [text.partition(":")[0] for text in line.lines] == ["ALARM of the monitor (scores)"]
    line.killed()
    again = Line(tmp_path / "journal")
    assert again.judge([10.0]) == ["changed"]
    again.killed()
    new = Line(tmp_path / "journal", DriftSettings(reset=True))
    assert new.judge([10.0]) == ["as calibrated"] and new.drift.monitor.parts == 1
    new.killed()
    later = Line(tmp_path / "journal")
    assert later.drift.monitor.parts == 1


def test_parts_without_a_verdict_or_of_unknown_products_are_left_out(tmp_path):
    line = Line(tmp_path / "journal")
    line.judge([500.0] * 3, label="unknown")
    assert line.drift.update({"path": "x", "error": "unreadable"}) == "as calibrated"
    assert line.drift.monitor.parts == 0


def test_another_model_or_setting_begins_anew(tmp_path):
    line = Line(tmp_path / "journal")
    line.judge([50.0] * 5)
    line.killed()
    other = Line(tmp_path / "journal", pipe=type("Other", (StubModel,), {"digest": "other"})())
    assert other.lines == ["the monitor begins anew: another model"] and other.drift.monitor.parts == 0
    other.killed()
    setting = Line(tmp_path / "journal", DriftSettings(level=0.01), type("Other", (StubModel,), {"digest": "other"})())
    assert setting.lines == ["the monitor begins anew: level 0.05 there, 0.01 now"]


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
