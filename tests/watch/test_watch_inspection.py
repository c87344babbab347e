"""The inspection with sources, models, sinks and journals that fail and recover."""

import json
import shutil
import threading
import time

import pytest
from diffad.imaging.decoding import ImageError
from diffad.watch.board import Board
from diffad.watch.inspection import Inspection
from diffad.watch.journal import JournalError, PartJournal
from diffad.watch.judge import Judge
from diffad.watch.sources.part import Part, PartKey
from watch_stub import (
    ListSink,
    StubModel,
    eventually,
    fast_backoff,
    folder_inspection,
    grey,
    running,
    save_grey,
    watch_once,
)


def names(results) -> list[str]:
    return [result["path"] for result in results]


@pytest.fixture
def camera(tmp_path):
    """Three images: good, defective, good."""
    save_grey(tmp_path / "camera", [20, 220, 30])
    return tmp_path / "camera"


@pytest.fixture
def journal(tmp_path, camera):
    with PartJournal(tmp_path / "journal", str(camera.resolve())) as made:
        yield made


def test_verdicts_and_states(camera, journal):
    (camera / "9.png").write_bytes(b"broken")
    sink = ListSink()
    summary = folder_inspection(camera, journal, [sink]).run()
    assert (summary.parts, summary.defective, summary.without_verdict, summary.undelivered) == (4, 1, 1, {})
    assert [result["label"] for result in sink.results] == ["good", "defective", "good", None]
    assert [result["number"] for result in sink.results] == [1, 2, 3, 4]
    assert "9.png" in sink.results[3]["error"] and sink.results[0]["model"] == "stub"
    assert [result["id"] for result in sink.results] == [f"{journal.identity}-{n}" for n in (1, 2, 3, 4)]
    assert sink.situations[-1].state.name == "ERROR" and sink.situations[-1].causes.name == "PART"
    for situation, later in zip(sink.situations, sink.situations[1:]):
        assert situation.number <= later.number


def test_ok_and_ng_are_shown_until_the_next_part(camera, journal):
    sink = ListSink()
    with running(folder_inspection(camera, journal, [sink], once=False)):
        eventually(lambda: len(sink.results) == 3)
        for number, (level, state) in enumerate(((220, "NG"), (20, "OK")), 4):
            save_grey(camera, [level], first=number)
            eventually(lambda state=state, number=number: sink.situations[-1].number == number)
            time.sleep(0.05)
            assert sink.situations[-1].state.name == state


def test_a_second_run_takes_new_parts_only(camera, tmp_path):
    first, second, late = ListSink("a"), ListSink("a"), ListSink("late")
    watch_once(camera, tmp_path / "journal", lambda _: [first])
    save_grey(camera, [40], first=7)
    watch_once(camera, tmp_path / "journal", lambda _: [second, late])
    assert names(first.results) == ["0000.png", "0001.png", "0002.png"]
    assert names(second.results) == names(late.results) == ["0007.png"]
    assert second.results[0]["number"] == 4


def test_a_dead_sink_gets_its_results_later_and_holds_nobody_up(camera, journal):
    dead, alive = ListSink("dead", failures=3), ListSink("alive")
    lines: list[str] = []
    folder_inspection(camera, journal, [dead, alive], board=Board(0, lines.append)).run()
    assert names(dead.results) == names(alive.results) == ["0000.png", "0001.png", "0002.png"]
    assert lines == ["sink dead failed: not now; trying again", "sink dead works again"]


def test_results_of_a_sink_that_stays_dead_wait_for_the_next_run(camera, tmp_path):
    summary = watch_once(camera, tmp_path / "journal", lambda _: [ListSink("a", failures=10**9)], patience=0.1)
    assert summary.undelivered == {"a": 3} and summary.parts == 3
    alive = ListSink("a")
    assert watch_once(camera, tmp_path / "journal", lambda _: [alive]).parts == 0
    assert names(alive.results) == ["0000.png", "0001.png", "0002.png"]


class FailingModel(StubModel):
    """Fails as often as its class is told to."""

    failures = 0
    loads = 0

    def __init__(self):
        type(self).loads += 1

    def __call__(self, images, *arguments, **options):
        if type(self).failures > 0:
            type(self).failures -= 1
            raise RuntimeError("the device is lost")
        return super().__call__(images, *arguments, **options)


@pytest.mark.parametrize("failures", [1, 2, 7])
def test_a_dead_model_is_loaded_anew_and_no_part_is_lost(camera, journal, failures):
    model = type("Model", (FailingModel,), {"failures": failures})
    sink, lines = ListSink(), []
    summary = folder_inspection(camera, journal, [sink], load=model, board=Board(0, lines.append)).run()
    assert summary.parts == 3 and model.loads > 1
    if failures == 2:  # the image is blamed: a grey one was judged right after
        assert sink.results[0]["error"].startswith("0000.png: the model fails on this image (RuntimeError: the device is lost)")
    else:
        assert [result["label"] for result in sink.results] == ["good", "defective", "good"]
    assert bool(lines) == (failures == 7)
    if lines:
        assert lines == ["model failed: RuntimeError: the device is lost; trying again", "model works again"]
        assert any(situation.causes.name == "MODEL" for situation in sink.situations)


def test_a_model_that_fails_on_one_image_only(camera, journal):
    class Picky(StubModel):
        def __call__(self, images, *arguments, **options):
            if images[0].getpixel((0, 0))[0] == 220:
                raise MemoryError
            return super().__call__(images, *arguments, **options)

    sink = ListSink()
    folder_inspection(camera, journal, [sink], load=Picky).run()
    assert [result["label"] for result in sink.results] == ["good", None, "good"]
    assert "MemoryError" in sink.results[1]["error"]


def test_a_score_that_is_no_number_is_a_failing_model(camera, journal):
    class Broken(StubModel):
        def __call__(self, images, *arguments, **options):
            output = super().__call__(images, *arguments, **options)
            output.image_scores[:] = float("nan")
            return output

    lines: list[str] = []
    inspection = folder_inspection(camera, journal, [ListSink()], load=Broken, board=Board(0, lines.append))
    with running(inspection):
        eventually(lambda: lines)
    assert "the score is nan" in lines[0] and journal.next_number == 1


def test_another_model_in_the_place_of_a_failed_one_is_not_taken(camera):
    models = iter([type("First", (StubModel,), {"__call__": None}), type("Second", (StubModel,), {"digest": "another"})])
    judge = Judge(lambda: next(models)())
    part = Part(PartKey("a.png", 1, 1), grey(10))
    with pytest.raises(Exception, match="another model lies in its place"):
        judge.row(part)


def test_a_dead_source_is_tried_again(camera, journal, tmp_path):
    sink, lines = ListSink(), []
    with running(folder_inspection(camera, journal, [sink], once=False, board=Board(0, lines.append))):
        eventually(lambda: len(sink.results) == 3)
        camera.rename(tmp_path / "unplugged")
        eventually(lambda: any(line.startswith(f"source {camera}") for line in lines))
        eventually(lambda: sink.situations[-1].causes.name == "SOURCE")
        (tmp_path / "unplugged").rename(camera)
        save_grey(camera, [50], first=5)
        eventually(lambda: len(sink.results) == 4)
    assert names(sink.results) == ["0000.png", "0001.png", "0002.png", "0005.png"]
    assert lines[-1] == f"source {camera} works again"


def test_no_sink_hears_of_what_the_journal_does_not_hold(camera, journal, monkeypatch):
    sink, failures, append = ListSink(), [3], journal.append

    def fail(key, result, features):
        assert len(sink.results) < result["number"]
        if failures[0] > 0:
            failures[0] -= 1
            raise JournalError("database or disk is full")
        append(key, result, features)

    monkeypatch.setattr(journal, "append", fail)
    lines: list[str] = []
    folder_inspection(camera, journal, [sink], board=Board(0, lines.append)).run()
    assert [result["number"] for result in sink.results] == [1, 2, 3] and failures == [0]
    assert "disk is full" in lines[0]


class LiveSource:
    """Frames faster than they can be judged."""

    address, is_live = "camera", True

    def __init__(self, count: int):
        self.count = count

    def parts(self, stop):
        for number in range(1, self.count + 1):
            yield Part(PartKey(f"frame {number}", 0, number), grey(10))
            time.sleep(0.001)


def test_frames_of_a_stream_that_nobody_takes_make_room_for_newer_ones(tmp_path):
    class Slow(StubModel):
        def __call__(self, *arguments, **options):
            time.sleep(0.02)
            return super().__call__(*arguments, **options)

    with PartJournal(tmp_path / "journal", "camera", remembers=False) as journal:
        sink = ListSink()
        summary = Inspection(LiveSource(100), Judge(Slow), journal, [sink], backoff=fast_backoff).run()
    frames = [int(name.partition(" ")[2]) for name in names(sink.results)]
    assert summary.parts + summary.dropped == 100 and 2 <= len(frames) < 50
    assert frames == sorted(frames) and frames[-1] == 100


def test_an_image_that_can_not_be_read_needs_no_model(camera):
    judge = Judge(StubModel)
    row = judge.row(Part(PartKey("a\udcff.png", 1, 1), ImageError("a\udcff.png: damaged")))
    assert row == {"path": "a\N{REPLACEMENT CHARACTER}.png", "error": "a\N{REPLACEMENT CHARACTER}.png: damaged"}


def test_the_journal_forgets_while_it_runs(tmp_path, monkeypatch):
    from diffad.watch import inspection

    monkeypatch.setattr(inspection, "FORGETTING_EVERY", 10)
    monkeypatch.setattr(inspection, "KEPT_RESULTS", 5)
    folder = tmp_path / "camera"
    save_grey(folder, [20] * 20)
    with PartJournal(tmp_path / "journal", str(folder.resolve())) as journal:
        sink = ListSink()
        folder_inspection(folder, journal, [sink]).run()
        kept = [result["number"] for result in journal.results(0, 100, 100)]
        assert len(sink.results) == 20 and kept == list(range(kept[0], 21)) and kept[0] > 1
    assert json.dumps(sink.results)


def test_a_sink_is_named_once(camera, journal):
    with pytest.raises(ValueError, match="same: is named twice"):
        folder_inspection(camera, journal, [ListSink("other"), ListSink("same"), ListSink("same")])


def test_stopping_ends_all_threads(camera, journal):
    before = threading.active_count()
    shutil.rmtree(camera)  # source and sink are dead, too
    inspection = folder_inspection(camera, journal, [ListSink(failures=10**9)], once=False, patience=0.05)
    with running(inspection):
        time.sleep(0.1)
    eventually(lambda: threading.active_count() <= before)
