"""The martingale of scores: exact expectation by enumeration, the exact Bayes factor, false alarms and detection."""

import itertools

import numpy as np
import pytest
from diffad.monitoring import score_test
from diffad.monitoring.score_test import KINDS, ScoreTest
from diffad.monitoring.urn import group_of_gap, urn_probabilities


@pytest.mark.parametrize(("gaps", "parts"), [(2, 9), (3, 6), (4, 5)])
def test_the_martingale_has_expectation_one_after_every_part_and_history(gaps, parts, monkeypatch):
    """All sequences of groups as streams; slots are few and short, so that they are opened and united within the sequences."""
    monkeypatch.setattr(score_test, "PARTS_PER_START", 2)
    monkeypatch.setattr(score_test, "SLOTS", 3)
    groups = len(ScoreTest(gaps).sizes)
    sequences = np.array(list(itertools.product(range(groups), repeat=parts)))
    test = ScoreTest(gaps, len(sequences))
    martingale, probability = [np.ones(len(sequences))], np.ones(len(sequences))
    for part in range(parts):
        probability *= urn_probabilities(test.sizes, test.counts)[np.arange(len(sequences)), sequences[:, part]]
        martingale.append(np.exp(test.update(sequences[:, part])))
    assert probability.sum() == pytest.approx(1, rel=1e-12)
    for part, values in enumerate(martingale):
        assert probability @ values == pytest.approx(1, rel=1e-9)
        # Given any history up to the part, the mean of what follows is the value there.
        blocks = (groups**part, -1)
        weights, later = probability.reshape(blocks), martingale[-1].reshape(blocks)
        np.testing.assert_allclose((weights * later).sum(1) / weights.sum(1), values.reshape(blocks)[:, 0], rtol=1e-9)
    assert len(np.unique(np.round(martingale[-1], 6))) > groups  # it bets


def test_wealth_of_a_change_from_the_start_is_near_the_exact_bayes_factor():
    """The exact one is prod w^b E[(w . D)^-B] over D ~ Dirichlet(m + c), here by Monte Carlo."""
    rng = np.random.default_rng(0)
    test = ScoreTest(40)
    groups = rng.choice(len(test.sizes), size=60, p=test.sizes / 40)
    kind = list(KINDS).index("rise of 0.5 sd")
    wealth = test.log_wealth[0, 0, kind]
    for count, group in enumerate(groups[:9], 1):  # before slots are united
        test.update(np.array([group]))
        of_kind = test.log_wealth[0, 0, kind] - wealth
        masses = rng.dirichlet(test.sizes + test.counts[0], size=200_000)
        tilt = test.tilts[kind]
        exact = np.log(tilt) @ test.counts[0] + np.log(((masses @ tilt) ** -float(count)).mean())
        assert of_kind == pytest.approx(exact, abs=0.02 * count)


def test_the_latent_scale_follows_its_equation():
    rng = np.random.default_rng(1)
    test = ScoreTest(50)
    for group in rng.choice(len(test.sizes), size=400, p=test.sizes / 50):
        test.update(np.array([group]))
    contents = test.sizes + test.counts[0]
    for kind, tilt in enumerate(test.tilts):
        scaled = test.scale[0, 0, kind] * tilt
        assert (contents * scaled / (1 + scaled)).sum() == pytest.approx(test.since[0, 0, kind], rel=0.01)


def streams(n: int, count: int, parts: int, shift: float, seed: int) -> np.ndarray:
    """Gaps of normal scores among as many fresh calibration sets."""
    rng = np.random.default_rng(seed)
    calibration = np.sort(rng.normal(size=(count, n)), axis=1)
    scores = rng.normal(size=(count, parts)) + shift
    return (scores[:, :, None] > calibration[:, None]).sum(axis=2)


@pytest.mark.parametrize("n", [10, 40])
def test_false_alarms_keep_their_level(n):
    count, level = 600, 0.1
    test, gaps = ScoreTest(n + 1, count), streams(n, count, 300, 0.0, 2)
    groups = group_of_gap(test.sizes)[gaps]
    highest = np.max([test.update(groups[:, part]) for part in range(gaps.shape[1])], axis=0)
    assert (highest >= -np.log(level)).mean() <= level + 3 * np.sqrt(level * (1 - level) / count)
    assert (highest >= -np.log(level)).mean() > 0.01  # it is a test that can fail


@pytest.mark.parametrize(("shift", "kind", "within"), [(2.0, "rise", 12), (-2.0, "fall", 25)])
def test_shifts_are_found_and_named(shift, kind, within):
    test, gaps = ScoreTest(51, 100), streams(50, 100, within, shift, 3)
    groups = group_of_gap(test.sizes)[gaps]
    evidence = [test.update(groups[:, part]) for part in range(within)][-1]
    assert (evidence > np.log(50)).mean() > 0.8
    names = np.array([*KINDS, "other"])[test.kinds.argmax(axis=1)]
    assert np.mean([name.startswith(kind) for name in names]) > 0.8


def test_a_state_goes_on_bit_for_bit():
    groups = np.random.default_rng(4).integers(0, 9, size=300)
    whole, first, second = ScoreTest(51), ScoreTest(51), ScoreTest(51)
    for group in groups:
        whole.update(np.array([group]))
    for group in groups[:137]:
        first.update(np.array([group]))
    second.restore(first.state())
    for group in groups[137:]:
        second.update(np.array([group]))
    assert second.state() == whole.state() and second.log_evidence == whole.log_evidence


def test_ranks_need_a_score():
    with pytest.raises(ValueError, match="0 calibration scores below the threshold"):
        ScoreTest(1)
