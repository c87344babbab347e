"""The journal: what it keeps, what it refuses, a full disk."""

import sqlite3

import numpy as np
import pytest
from diffad.monitoring.state_digest import DamagedStateError
from diffad.watch.journal import JournalError, PartJournal
from diffad.watch.sources.part import PartKey


def key(number: int) -> PartKey:
    return PartKey(f"{number}.png", 10, number)


def fill(journal: PartJournal, count: int) -> None:
    for _ in range(count):
        number = journal.next_number
        journal.append(key(number), {"number": number})


def numbers(journal: PartJournal, after: int = 0) -> list[int]:
    return [result["number"] for result in journal.results(after, 10**9, 10**6)]


def test_parts_and_marks_outlast_the_process(tmp_path):
    with PartJournal(tmp_path / "journal", "camera") as journal:
        journal.add_sink("a")
        fill(journal, 5)
        journal.mark_delivered("a", 3)
        journal.add_sink("late")
        identity = journal.identity
        assert not journal.knows(PartKey("1.png", 11, 1)) and not journal.knows(PartKey("1.png", 10, 2))
    with PartJournal(tmp_path / "journal", "camera") as journal:
        journal.add_sink("a")
        journal.add_sink("late")
        assert journal.identity == identity and journal.next_number == 6
        assert journal.knows(key(1)) and not journal.knows(key(6))
        assert journal.delivered("a") == 3 and journal.delivered("late") == 5
        assert numbers(journal, 3) == [4, 5]
        assert [result["number"] for result in journal.results(1, 4, 2)] == [2, 3]


def test_names_need_not_be_text(tmp_path):
    with PartJournal(tmp_path / "journal", "camera") as journal:
        odd = PartKey("a\udcff\n.png", 1, 1)
        journal.append(odd, {"number": 1})
        assert journal.knows(odd)


def test_a_part_is_kept_once(tmp_path):
    with PartJournal(tmp_path / "journal", "camera") as journal:
        fill(journal, 1)
        with pytest.raises(JournalError, match="UNIQUE"):
            journal.append(key(1), {"number": 2})
        assert journal.next_number == 2


@pytest.mark.parametrize("remembers", [True, False])
def test_what_all_have_got_is_forgotten(tmp_path, remembers):
    with PartJournal(tmp_path / "journal", "camera", remembers) as journal:
        journal.add_sink("a")
        journal.add_sink("b")
        fill(journal, 10)
        journal.mark_delivered("a", 8)
        journal.mark_delivered("b", 5)
        journal.forget(keep=1)
        assert numbers(journal) == [6, 7, 8, 9, 10]
        journal.mark_delivered("b", 10)
        journal.save_monitor({"number": 6})
        journal.forget(keep=1, monitored=6)
        assert numbers(journal) == [7, 8, 9, 10]
        journal.forget(keep=9)
        assert numbers(journal) == [7, 8, 9, 10]
        assert journal.knows(key(1)) == remembers and journal.saved_monitor() == {"number": 6}
        assert journal.next_number == 11


def test_the_state_of_a_monitor_that_does_not_run_holds_no_results(tmp_path):
    with PartJournal(tmp_path / "journal", "camera") as journal:
        journal.save_monitor({"number": 0})
        fill(journal, 10)
        journal.forget(keep=1)
        assert numbers(journal) == [10] and journal.saved_monitor() == {"number": 0}


def test_what_parts_were_judged_with_otherwise_is_told(tmp_path):
    nut, bolt = ({"model": "m", "category": name, "false_alarm_rate": None} for name in ("nut", "bolt"))
    with PartJournal(tmp_path / "journal", "camera") as journal:
        assert journal.begin_run(bolt) == journal.begin_run(nut) == ""  # no part was judged yet
        fill(journal, 1)
        assert journal.begin_run(nut) == ""
    with PartJournal(tmp_path / "journal", "camera") as journal:
        assert journal.begin_run(bolt | {"model": "n"}) == "model m there, n now, category nut there, bolt now"
        assert (
            journal.begin_run(bolt | {"false_alarm_rate": 0.01})
            == "model n there, m now, false alarm rate None there, 0.01 now"
        )


def test_damaged_settings_of_the_latest_run_stop_nothing(tmp_path):
    with PartJournal(tmp_path / "journal", "camera") as journal:
        fill(journal, 1)
        journal.begin_run({"category": "nut"})
        with journal._transaction() as run:
            run("UPDATE about SET value = '{' WHERE name = 'settings'")
        assert journal.begin_run({"category": "bolt"}) == ""
        assert journal.begin_run({"category": "nut"}) == "category bolt there, nut now"


def test_a_damaged_state_of_a_monitor_is_told_and_set_aside(tmp_path):
    path = tmp_path / "journal"
    with PartJournal(path, "camera") as journal:
        for number, value in enumerate(('{"number": 7', "", b"\xff\xfe", "[" * 100_000, "[]"), 1):
            journal.save_monitor({"number": 1})
            with journal._transaction() as run:
                run("UPDATE about SET value = ? WHERE name = 'monitor'", (value,))
            with pytest.raises(DamagedStateError, match="damaged"):
                journal.saved_monitor()
            name = journal.set_monitor_aside()
            assert name == f"kept monitor {number}" and journal.saved_monitor() is None
            assert journal._one("SELECT value FROM about WHERE name = ?", (name,)) == (value,)


def test_features_that_no_monitor_takes_are_forgotten_with_their_results(tmp_path):
    with PartJournal(tmp_path / "journal", "camera") as journal:
        for number in range(1, 6):
            journal.append(key(number), {"number": number}, np.ones(3))
        journal.forget(keep=2)
        assert numbers(journal) == [4, 5]
        assert [journal.features(number) is not None for number in range(1, 6)] == [False] * 3 + [True] * 2


def test_another_process_another_source_and_other_files_are_refused(tmp_path):
    path = tmp_path / "journal"
    with PartJournal(path, "camera") as journal:
        fill(journal, 1)
        with pytest.raises(ValueError, match="another process uses this journal"):
            PartJournal(path, "camera")
    with pytest.raises(ValueError, match="belongs to camera, not to other"):
        PartJournal(path, "other")
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(ValueError, match="not a journal, or damaged"):
        PartJournal(tmp_path / "text", "camera")
    with pytest.raises(JournalError, match="can't be opened"):
        PartJournal(tmp_path / "gone/journal", "camera")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE about SET value = '99' WHERE name = 'format'")
    connection.close()
    with pytest.raises(ValueError, match="later release"):
        PartJournal(path, "camera")
