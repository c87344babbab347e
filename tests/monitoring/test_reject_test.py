"""The test of the reject rate against scipy's laws, enumeration and simulation."""

import itertools

import numpy as np
import pytest
from diffad.monitoring import reject_test
from diffad.monitoring.reject_test import FACTORS, PARTS_PER_START, RejectTest, log_probability
from scipy.integrate import quad
from scipy.special import comb
from scipy.stats import beta, betabinom


def test_without_defects_counts_are_beta_binomial():
    x = np.arange(11)
    np.testing.assert_allclose(np.exp(log_probability(x, 10, 2.0, 19.0)) * comb(10, x), betabinom.pmf(x, 10, 2, 19), rtol=1e-9)


@pytest.mark.parametrize(("rejects", "parts", "defect_rate"), [(0, 5, 0.01), (3, 20, 0.03), (9, 30, 0.2), (0, 0, 0.1)])
def test_with_defects_it_is_the_integral(rejects, parts, defect_rate):
    def integrand(r: float) -> float:
        rate = defect_rate + (1 - defect_rate) * r
        return rate**rejects * (1 - rate) ** (parts - rejects) * beta.pdf(r, 2, 19)

    expected = quad(integrand, 0, 1, epsabs=1e-16, epsrel=1e-10)[0]
    assert np.exp(log_probability(rejects, parts, 2.0, 19.0, defect_rate)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("defect_rate", [0.0, 0.05])
def test_ratios_have_expectation_one_and_rise_with_rejects(defect_rate):
    parts, x = 40, np.arange(41)
    promised = log_probability(x, parts, 2.0, 19.0, defect_rate)
    assert (np.exp(promised) * comb(parts, x)).sum() == pytest.approx(1, rel=1e-9)
    for factor in FACTORS:
        ratio = log_probability(x, parts, 2.0, 19.0 / factor, defect_rate) - promised
        assert (np.exp(promised + ratio) * comb(parts, x)).sum() == pytest.approx(1, rel=1e-9)
        assert (np.diff(ratio) > 0).all()


def test_evidence_is_the_highest_over_starts():
    rejected = np.random.default_rng(0).random((1, 90)) < 0.3
    rejected[0, -1] = True
    test = RejectTest(19, 18)
    for part in range(90):
        evidence = test.update(rejected[:, part])
    expected = []
    for start, prior in zip(test.starts, test.log_priors, strict=True):
        x, t = rejected[0, start:].sum(), 90 - start
        ratios = [np.exp(log_probability(x, t, 2.0, 18.0 / factor) - log_probability(x, t, 2.0, 18.0)) for factor in FACTORS]
        expected.append(prior + np.log(np.mean(ratios)))
    assert test.starts[0] == 0 and test.starts[1] % PARTS_PER_START == 0 and evidence[0] == pytest.approx(max(expected))


def test_priors_of_all_starts_are_at_most_one():
    test = RejectTest(19, 18)
    priors = [test.log_priors[0]]
    for part in range(3000):
        test.update(np.array([False]))
        if part % PARTS_PER_START == 0:
            priors.append(test.log_priors[-1])
    assert np.exp(priors).sum() <= 1 and len(test.starts) <= reject_test.SLOTS


def test_a_part_less_rejected_never_raises_evidence(monkeypatch):
    monkeypatch.setattr(reject_test, "PARTS_PER_START", 3)
    sequences = np.array(list(itertools.product([False, True], repeat=8)))
    test = RejectTest(9, 9, streams=len(sequences))
    of_sequence = dict(zip(map(tuple, sequences.tolist()), [test.update(column) for column in sequences.T][-1], strict=True))
    for sequence, evidence in of_sequence.items():
        for i in range(8):
            fewer = (*sequence[:i], False, *sequence[i + 1 :])
            assert of_sequence[fewer] <= evidence + 1e-12


@pytest.mark.parametrize(("defect_rate", "share"), [(0.0, 0.0), (0.1, 0.1), (0.1, 0.0)])
def test_false_alarms_keep_their_level(defect_rate, share):
    rng, count, level = np.random.default_rng(5), 300, 0.1
    test = RejectTest(40, 39, defect_rate, count)
    rates = rng.beta(2, 39, size=count)
    rejected = rng.random((count, 120)) < (share + (1 - share) * rates)[:, None]
    highest = np.max([test.update(column) for column in rejected.T], axis=0)
    assert (highest >= -np.log(level)).mean() <= level + 3 * np.sqrt(level * (1 - level) / count)


def test_more_rejects_are_found_after_any_number_of_good_parts():
    rng, count = np.random.default_rng(6), 100
    test = RejectTest(100, 96, streams=count)
    rejected = np.concatenate([rng.random((count, 700)) < 0.05, rng.random((count, 100)) < 0.5], axis=1)
    highest = [test.update(column) for column in rejected.T]
    assert (np.max(highest[:700], axis=0) < np.log(100)).mean() > 0.95 and (highest[-1] > np.log(100)).mean() > 0.95


def test_a_state_goes_on_bit_for_bit():
    rejected = np.random.default_rng(7).random(800) < 0.1
    whole, first, second = (RejectTest(50, 48, 0.02) for _ in range(3))
    for part in rejected:
        whole.update(np.array([part]))
    for part in rejected[:411]:
        first.update(np.array([part]))
    second.restore(first.state())
    for part in rejected[411:]:
        second.update(np.array([part]))
    assert second.state() == whole.state()
