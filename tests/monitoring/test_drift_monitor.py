"""DriftMonitor: resumes bit for bit, leaves rejects to the reject rate, counts each part, refuses what it can't use."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from damaged_states import damaged_values, without_digest
from diffad import DriftMonitor
from diffad.monitoring import drift_monitor, embedding_test
from diffad.monitoring.drift_monitor import EMBEDDINGS, REJECTS, SCORES, StateError, without_waiting
from diffad.monitoring.state_digest import DamagedStateError, with_digest
from diffad.monitoring.suggestions import Suggestion

GOOD = np.random.default_rng(0).normal(size=60)


def fed(monitor: DriftMonitor, scores, features=None):
    for i, score in enumerate(scores):
        state = monitor.update(score, None if features is None else features[i])
    return state


def test_unchanged_parts_raise_no_alarm():
    state = fed(DriftMonitor(GOOD), np.random.default_rng(1).normal(size=400))
    assert not state.changed and state.parts == 400 and 0 < state.rejected < 60
    assert set(state.evidence) == {SCORES, REJECTS} and state.limits[SCORES] == pytest.approx(1 / (0.75 * 0.05))


def test_a_fall_of_scores_is_an_alarm_that_stays_and_is_named():
    monitor = DriftMonitor(GOOD)
    state = fed(monitor, np.random.default_rng(2).normal(size=60) - 1.5)
    assert state.changed and state.alarms[SCORES] < 40 and state.likely_kind.startswith("fall")
    later = fed(monitor, np.random.default_rng(3).normal(size=300))
    assert later.alarms == state.alarms


def test_rejects_alone_change_nothing_in_the_test_of_scores():
    good = np.random.default_rng(4).normal(size=200)
    threshold = DriftMonitor(GOOD).threshold
    good = good[good <= threshold]
    with_defects = np.insert(good, np.arange(0, len(good), 3), 50.0)
    plain, mixed = DriftMonitor(GOOD), DriftMonitor(GOOD)
    expected, state = fed(plain, good), fed(mixed, with_defects)
    assert state.evidence[SCORES] == pytest.approx(expected.evidence[SCORES], rel=1e-9)
    assert REJECTS in state.alarms and SCORES not in state.alarms and state.rejected == len(with_defects) - len(good)


def test_expected_defects_are_no_alarm():
    scores = np.random.default_rng(5).normal(size=300)
    scores[::5] = 50.0
    assert REJECTS in fed(DriftMonitor(GOOD), scores).alarms
    assert not fed(DriftMonitor(GOOD, defect_rate=0.2), scores).changed


@pytest.mark.parametrize("split", [0, 1, 7, 153, 299])
def test_it_resumes_bit_for_bit_through_strict_json(split):
    scores = np.round(np.random.default_rng(6).normal(size=300) + 0.3, 1)  # with ties
    calibration = np.round(GOOD, 1)
    whole, first, second = (DriftMonitor(calibration, 0.1, defect_rate=0.02, seed=3) for _ in range(3))
    fed(whole, scores)
    for score in scores[:split]:
        first.update(score)
    second.restore(json.loads(json.dumps(first.to_dict(), allow_nan=False)))
    fed(second, scores[split:])
    assert json.dumps(second.to_dict()) == json.dumps(whole.to_dict())
    assert second.state == whole.state


def test_embeddings_of_parts_called_good_are_tested(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (10, 20))
    rng = np.random.default_rng(7)
    scores, reference = rng.normal(size=80), rng.normal(size=(60, 5))
    features = rng.normal(size=(80, 5))
    monitor = DriftMonitor(GOOD, reference_features=reference)
    state = fed(monitor, scores, features)
    assert not state.changed and len(state.looks) == (80 - state.rejected) // 10
    assert state.limits[SCORES] == pytest.approx(1 / (0.6 * 0.05))
    state = fed(monitor, scores, features + 3)
    assert list(state.alarms) == [EMBEDDINGS]
    resumed = DriftMonitor(GOOD, reference_features=reference)
    resumed.restore(json.loads(json.dumps(monitor.to_dict())))
    assert resumed.state == state
    with pytest.raises(ValueError, match="needs its features"):
        monitor.update(-1.0)
    assert monitor.state.parts == 160 and not monitor.embedding_test.waiting


def test_comparisons_of_embeddings_can_be_left_to_another_thread(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (10, 25))
    rng = np.random.default_rng(7)
    scores, reference, features = np.sort(GOOD)[:50], rng.normal(size=(60, 5)), rng.normal(size=(50, 5))
    features[35:] += 4
    at_once = DriftMonitor(GOOD, reference_features=reference)
    later = DriftMonitor(GOOD, reference_features=reference, defers_embeddings=True)
    assert not later.has_due_look
    fed(at_once, scores, features)
    fed(later, scores, features)
    assert later.has_due_look and not later.state.looks and EMBEDDINGS in at_once.alarms
    # A killed program's comparison is due again
    resumed = DriftMonitor(GOOD, reference_features=reference, defers_embeddings=True)
    resumed.restore(json.loads(json.dumps(later.to_dict())))
    for monitor in (later, resumed):
        monitor.test_embeddings()
        assert not monitor.has_due_look and monitor.state.looks == at_once.state.looks
        assert monitor.alarms == at_once.alarms | {EMBEDDINGS: 50}


def test_parts_are_taken_while_embeddings_are_compared(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (10,))
    began, goes_on = threading.Event(), threading.Event()

    def p_value(*arguments) -> float:
        began.set()
        assert goes_on.wait(30)
        return 0.0

    monkeypatch.setattr(embedding_test, "permutation_p_value", p_value)
    monitor = DriftMonitor(GOOD, reference_features=np.zeros((20, 1)), defers_embeddings=True)
    fed(monitor, [-1.0] * 10, np.zeros((10, 1)))
    thread = threading.Thread(target=monitor.test_embeddings)
    thread.start()
    assert began.wait(30)
    assert monitor.update(-1.0, np.zeros(1)).parts == 11
    goes_on.set()
    thread.join()
    assert monitor.alarms[EMBEDDINGS] == 11


def test_alarms_are_explained_once_each():
    monitor = DriftMonitor(GOOD)
    assert not monitor.needs_explanation
    fed(monitor, [-5.0] * 40)
    darker = Suggestion("brightness", "darker", 100.0, 90.0, -3.0, 1e-5)
    assert monitor.needs_explanation
    monitor.explain([darker], 1)
    resumed = DriftMonitor(GOOD)
    resumed.restore(json.loads(json.dumps(monitor.to_dict())))
    for one in (monitor, resumed):
        assert one.suggestions == [darker] and not one.needs_explanation
    fed(resumed, [50.0] * 20)
    assert REJECTS in resumed.alarms and resumed.needs_explanation
    resumed.explain([darker], 1)  # of images before that alarm
    assert resumed.needs_explanation
    resumed.explain([darker], 2)
    assert not resumed.needs_explanation
    former = without_digest(monitor.to_dict())
    del former["suggestions"], former["explained"]
    resumed.restore(former)
    assert resumed.suggestions == []


def test_equal_scores_everywhere_are_no_change():
    """A constant score carries no ranks; the tie breakers spread it over all gaps."""
    state = fed(DriftMonitor(np.full(40, 1.0)), np.full(500, 1.0))
    assert not state.changed and state.rejected == 0


def test_embeddings_are_those_of_parts_in_the_urn():
    """Of parts that tie with the threshold, those beyond its tie breaker are in neither test; no reference image is."""
    calibration = np.array([1.0] * 30 + [2.0] * 30)
    monitor = DriftMonitor(calibration, 0.25, reference_features=np.zeros((20, 1)), defers_embeddings=True)
    assert monitor.threshold == 2.0
    state = fed(monitor, [2.0] * 60, np.zeros((60, 1)))
    assert state.rejected == 0 and 0 < monitor.score_test.parts < 60
    assert len(monitor.embedding_test.waiting) == monitor.score_test.parts
    with pytest.raises(ValueError, match="needs its features"):
        monitor.update(2.0)
    assert monitor.parts == 60


def test_whether_a_look_is_due_is_asked_without_its_window(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (10,))
    monitor = DriftMonitor(GOOD, reference_features=np.zeros((20, 1)), defers_embeddings=True)
    fed(monitor, [-1.0] * 10, np.zeros((10, 1)))
    monkeypatch.setattr(monitor.embedding_test, "due_look", None)
    assert monitor.has_due_look


def test_a_state_without_waiting_parts_goes_on_with_new_ones(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (10, 20))
    monitor, resumed = (DriftMonitor(GOOD, reference_features=np.zeros((20, 1)), defers_embeddings=True) for _ in range(2))
    fed(monitor, [-1.0] * 15, np.zeros((15, 1)))
    monitor.test_embeddings()
    saved = monitor.to_dict()
    resumed.restore(without_waiting(saved))
    assert len(monitor.embedding_test.waiting) == 15 and saved == monitor.to_dict()
    assert resumed.parts == 15 and resumed.embedding_test.looked == 1 and not resumed.embedding_test.waiting
    fed(resumed, [-1.0] * 19, np.zeros((19, 1)))
    assert not resumed.has_due_look
    fed(resumed, [-1.0], np.zeros((1, 1)))
    assert resumed.has_due_look
    plain = DriftMonitor(GOOD).to_dict()
    assert without_waiting(plain) == plain


def test_threads_take_turns():
    monitor = DriftMonitor(GOOD)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(monitor.update, np.random.default_rng(8).normal(size=200)))
    assert monitor.state.parts == 200 and monitor.score_test.parts == 200 - monitor.state.rejected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 0.0}, "level must lie between 0 and 1"),
        ({"defect_rate": 1.0}, "defect_rate must lie in"),
        ({"defect_rate": -0.1}, "defect_rate must lie in"),
        ({"false_alarm_rate": 0.01}, "needs 99 good images"),
        ({"calibration_scores": [1.0, np.nan]}, "finite"),
        ({"calibration_scores": []}, "no calibration scores"),
        ({"calibration_scores": [1.0], "false_alarm_rate": 0.5}, "ranks need at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        DriftMonitor(**{"calibration_scores": GOOD, **arguments})


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_refused_and_not_counted(score):
    monitor = DriftMonitor(GOOD)
    with pytest.raises(ValueError, match="score of part 1 is not finite"):
        monitor.update(score)
    assert monitor.state.parts == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"level": 0.01}, "level 0.05 there, 0.01 now"),
        ({"defect_rate": 0.2}, "defect rate 0.0 there, 0.2 now"),
        ({"calibration_scores": GOOD + 1}, "of another model, calibration or reference"),
    ],
)
def test_a_state_of_another_monitor_is_refused(other, message):
    saved = DriftMonitor(GOOD).to_dict()
    with pytest.raises(StateError, match=message):
        DriftMonitor(**{"calibration_scores": GOOD, **other}).restore(saved)


@pytest.fixture(scope="module")
def busy() -> DriftMonitor:
    """A monitor with something in every value of its state."""
    rng, monitor = np.random.default_rng(10), with_all_tests()
    fed(monitor, [*rng.normal(size=30), *[50.0] * 20], rng.normal(size=(50, 3)))
    monitor.set_reports([30, 31])
    monitor.explain([Suggestion("brightness", "darker", 100.0, 90.0, -3.0, 1e-5)], 1)
    state = monitor.to_dict()
    assert state["alarms"] and state["embedding_test"]["blocks"] and state["embedding_test"]["waiting"]
    return monitor


def with_all_tests() -> DriftMonitor:
    reference = np.random.default_rng(11).normal(size=(20, 3))
    return DriftMonitor(GOOD, reference_features=reference, with_feedback=True)


def test_of_a_damaged_state_nothing_is_taken_over(busy):
    saved = json.loads(json.dumps(busy.to_dict()))
    monitor = with_all_tests()
    fed(monitor, [0.0, 1.0], np.zeros((2, 3)))
    before, cases = monitor.to_dict(), 0
    for damaged in [*damaged_values(saved), None, [], "x", 1, {}]:
        cases += 1
        with pytest.raises(StateError, match="damaged|later release"):
            monitor.restore(damaged)
        assert monitor.to_dict() == before
    assert cases > 800
    monitor.restore(saved)
    assert monitor.to_dict() == busy.to_dict()


def test_a_damaged_state_of_a_former_release_is_taken_over_whole_or_not_at_all(busy):
    """It has no digest, so that a value that might have been written passes."""
    saved = without_digest(json.loads(json.dumps(busy.to_dict())))
    monitor = with_all_tests()
    before, refused, cases = monitor.to_dict(), 0, 0
    for damaged in damaged_values(saved):
        cases += 1
        try:
            monitor.restore(damaged)
        except StateError:
            refused += 1
            assert monitor.to_dict() == before
        else:
            monitor = with_all_tests()
    assert refused > 0.85 * cases, (refused, cases)
    for name in ("score_test", "reject_test", "embedding_test"):
        for lost in saved[name]:
            with pytest.raises(DamagedStateError):
                monitor.restore(saved | {name: {key: value for key, value in saved[name].items() if key != lost}})


def test_a_state_says_where_it_is_damaged(busy):
    saved = without_digest(busy.to_dict())
    counts = [np.nan, *saved["score_test"]["counts"][1:]]
    for change, message in (
        ({"score_test": saved["score_test"] | {"counts": counts}}, "score_test.counts.0 is not finite"),
        ({"history": None}, "history|NoneType"),
        ({"parts": "many"}, "many"),
        ({"alarms": {"scores": "x"}, "digest": with_digest(saved)["digest"]}, "the digest does not fit"),
    ):
        with pytest.raises(DamagedStateError, match=message):
            with_all_tests().restore(saved | change)


def test_stores_that_write_numbers_in_another_way_keep_a_state(busy):
    def other(value):
        if isinstance(value, dict):
            return {name: other(one) for name, one in reversed(value.items())}
        if isinstance(value, list):
            return list(map(other, value))
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value

    monitor, saved = with_all_tests(), json.loads(json.dumps(busy.to_dict()))
    monitor.restore(other(saved))
    assert monitor.state == busy.state and json.dumps(monitor.to_dict()) == json.dumps(saved)


def test_states_of_later_releases_are_refused():
    with pytest.raises(StateError, match="written by a later release"):
        DriftMonitor(GOOD).restore(DriftMonitor(GOOD).to_dict() | {"format": drift_monitor.FORMAT + 1})


def test_history_is_bounded():
    monitor = DriftMonitor(GOOD)
    fed(monitor, np.random.default_rng(9).normal(size=2300))
    points = monitor.history.points
    assert len(points) <= 1000 and points[-1][0] > 2290 and len(set(np.diff([point[0] for point in points]))) == 1


def test_it_needs_neither_torch_nor_matplotlib():
    modules = "diffad.monitoring.drift_monitor, diffad.monitoring.summary"
    heavy = f"import sys, {modules}; print({{'torch', 'matplotlib'}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
