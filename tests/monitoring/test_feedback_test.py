"""The test of the operator's word: against the beta-binomial law, under late and missing reports, and by simulation."""

import numpy as np
import pytest
from diffad.monitoring.drift_monitor import FEEDBACK, DriftMonitor
from diffad.monitoring.feedback_test import log_evidence
from diffad.monitoring.reject_test import FACTORS, PARTS_PER_START, START_PRIOR
from diffad.monitoring.urn import unspent
from scipy.stats import betabinom

N, RANK = 40, 39


def test_evidence_is_the_highest_ratio_of_beta_binomial_laws():
    reported, parts = [3, 30, 31, 33, 40, 41, 52], 60
    expected = []
    for start in range(0, parts, PARTS_PER_START):
        x, t = sum(place >= start for place in reported), parts - start
        a, b = N + 1 - RANK, RANK
        ratio = np.mean([betabinom.pmf(x, t, a, b / f) / betabinom.pmf(x, t, a, b) for f in FACTORS])
        prior = (1 - START_PRIOR) * (unspent(start) - unspent(start + PARTS_PER_START)) + START_PRIOR * (start == 0)
        expected.append(np.log(prior * ratio))
    assert log_evidence(parts, reported[::-1], N, RANK) == pytest.approx(max(expected))


def test_priors_of_all_times_are_at_most_one():
    starts = np.arange(0, 10**7, PARTS_PER_START)
    assert START_PRIOR + ((1 - START_PRIOR) * (unspent(starts) - unspent(starts + PARTS_PER_START))).sum() <= 1


def test_missing_reports_only_lower_it():
    rng = np.random.default_rng(0)
    all_of_them = np.flatnonzero(rng.random(400) < 0.2)
    for _ in range(20):
        fewer = all_of_them[rng.random(len(all_of_them)) < rng.random()]
        assert log_evidence(400, fewer, N, RANK) <= log_evidence(400, all_of_them, N, RANK)


def test_unchanged_production_seldom_alarms_and_more_wrong_rejects_do():
    """Calibration sets are drawn anew; reports of a part come up to 100 parts later, and those of some never."""
    rng = np.random.default_rng(1)
    level, streams, parts = 0.1, 300, 1000

    def alarms(factor: float) -> float:
        count = 0
        for _ in range(streams):
            rate = min(1.0, factor * rng.beta(N + 1 - RANK, RANK))
            wrong = np.flatnonzero(rng.random(parts) < rate)
            comes = wrong + rng.integers(0, 100, len(wrong))
            comes[rng.random(len(wrong)) < 0.1] = parts + 1
            evidence = max(log_evidence(now, wrong[comes < now], N, RANK) for now in range(50, parts + 1, 50))
            count += evidence >= -np.log(level)
        return count / streams

    assert alarms(1.0) <= level + 2 * np.sqrt(level * (1 - level) / streams)
    assert alarms(6.0) > 0.5


def test_the_monitor_shares_its_level_with_it_and_goes_on_from_a_state():
    scores = np.random.default_rng(2).normal(size=60)
    plain, monitor = DriftMonitor(scores), DriftMonitor(scores, with_feedback=True)
    assert sum(monitor.levels.values()) == pytest.approx(0.05) and monitor.levels[FEEDBACK] == pytest.approx(0.01)
    for part in range(60):
        monitor.update(100.0 if part % 3 == 0 else float(scores[part]))
    assert FEEDBACK not in monitor.state.alarms
    state = monitor.set_reports(range(0, 60, 3))
    assert state.alarms[FEEDBACK] == 60 and state.evidence[FEEDBACK] > state.limits[FEEDBACK] == pytest.approx(100)
    again = DriftMonitor(scores, with_feedback=True)
    again.restore(monitor.to_dict())
    assert again.state == monitor.state and again.reported == monitor.reported
    # An operator may take a word back; an alarm stays
    assert again.set_reports([]).evidence[FEEDBACK] < 1 and FEEDBACK in again.state.alarms
    with pytest.raises(ValueError, match="feedback False there, True now|feedback True there, False now"):
        plain.restore(monitor.to_dict())
    older = plain.to_dict()
    del older["settings"]["feedback"], older["reported"], older["feedback_evidence"], older["digest"]
    DriftMonitor(scores).restore(older)
    with pytest.raises(ValueError, match="without a test of feedback"):
        plain.set_reports([])
    with pytest.raises(ValueError, match="different places among the 60 parts"):
        monitor.set_reports([60])
