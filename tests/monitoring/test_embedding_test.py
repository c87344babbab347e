"""MMD and its permutation test against plain loops, enumeration and simulation."""

import itertools
import json

import numpy as np
import pytest
from diffad.monitoring import embedding_test
from diffad.monitoring.embedding_test import (
    EmbeddingTest,
    block_level,
    compared_before,
    discrepancy,
    is_compared,
    kernel_matrix,
    level_after,
    permutation_p_value,
)
from scipy.spatial.distance import mahalanobis


def weights_of(first: list[int], total: int) -> np.ndarray:
    weights = np.full(total, -1 / (total - len(first)))
    weights[first] = 1 / len(first)
    return weights


def test_discrepancy_is_the_mean_kernels():
    features = np.random.default_rng(0).normal(size=(7, 3))
    kernel = kernel_matrix(features)
    one, two = range(3), range(3, 7)
    expected = np.mean([kernel[i, j] for i in one for j in one]) + np.mean([kernel[i, j] for i in two for j in two])
    expected -= 2 * np.mean([kernel[i, j] for i in one for j in two])
    assert discrepancy(kernel, weights_of([0, 1, 2], 7)[None])[0] == pytest.approx(expected)


def test_kernel_is_gaussian_of_the_median_mahalanobis_distance():
    features = np.random.default_rng(1).normal(size=(6, 2)) @ [[1, 90], [0, 100]]
    inverse = np.linalg.inv(np.corrcoef(features.T) + 0.1 * np.eye(2))
    scaled = features / features.std(0)
    squared = np.array([[mahalanobis(one, other, inverse) ** 2 for one in scaled] for other in scaled])
    median = np.median([squared[i, j] for i in range(6) for j in range(i)])
    np.testing.assert_allclose(kernel_matrix(features), np.exp(-squared / median), rtol=1e-9)


def test_it_alarms_as_often_as_no_division_is_as_high():
    """Of N = 1 / level random divisions, each as high with the exact p-value, which enumeration gives."""
    rng, level, runs = np.random.default_rng(2), 1 / 40, 2000
    reference, block = rng.normal(size=(5, 2)), rng.normal(size=(4, 2)) + 1.5
    kernel = kernel_matrix(np.concatenate([reference, block]))
    values = [discrepancy(kernel, weights_of(list(first), 9)[None])[0] for first in itertools.combinations(range(9), 5)]
    observed = discrepancy(kernel, weights_of([0, 1, 2, 3, 4], 9)[None])[0]
    exact = np.mean(np.array(values) >= observed - 1e-12)
    p_values = np.array([permutation_p_value(reference, block, level, (seed,)) for seed in range(runs)])
    expected = (1 - exact) ** 40
    assert 0.1 < expected < 0.9
    assert np.mean(p_values <= level) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / runs))
    assert p_values.min() == 1 / 41


@pytest.mark.parametrize(("drawn", "p_value", "count"), [([1.0] * 30, 1 / 31, 30), ([1.0, 1.0, 2.0, 1.0], 2 / 4, 3)])
def test_the_first_division_as_high_ends_it(monkeypatch, drawn, p_value, count):
    monkeypatch.setattr(embedding_test, "FIRST_DRAWN", 1)
    monkeypatch.setattr(embedding_test, "AT_ONCE", 1)
    values = iter([2.0, *drawn])  # the block's own first
    monkeypatch.setattr(embedding_test, "discrepancy", lambda kernel, weights: np.array([next(values)]))
    assert permutation_p_value(np.zeros((5, 1)), np.ones((3, 1)), 1 / 30, (0,)) == p_value
    assert len(drawn) - len(list(values)) == count


def test_p_values_keep_their_level():
    rng, level = np.random.default_rng(3), 0.1
    alarms = [
        permutation_p_value(rng.normal(size=(20, 3)), rng.normal(size=(12, 3)), level, (seed,)) <= level for seed in range(200)
    ]
    assert abs(np.mean(alarms) - level) < 3 * np.sqrt(level * (1 - level) / 200)


def test_levels_of_all_blocks_add_up_to_the_level_at_most():
    levels = [block_level(block, 0.01) for block in range(5000)]
    assert 0.009 < sum(levels) <= 0.01 and min(levels) > 0


def test_of_late_blocks_ever_rarer_ones_are_compared():
    compared = [block for block in range(5000) if is_compared(block)]
    assert compared == [0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert list(map(compared_before, compared)) == list(range(15))
    # What the docstring says of a million parts
    assert 4 / block_level(14, 0.01) == pytest.approx(156_000, rel=0.01)


@pytest.mark.parametrize("block", [0, 1, 7, 60])
def test_what_blocks_leave_of_the_level(block):
    assert sum(block_level(each, 0.01) for each in range(block + 1)) + level_after(block, 0.01) == pytest.approx(0.01)


def fed(test: EmbeddingTest, parts: np.ndarray) -> list[bool]:
    """Whether any comparison after each part is an alarm."""
    alarms = []
    for part in parts:
        test.add(part)
        alarms.append(False)
        while (look := test.due_look()) is not None:
            alarms[-1] |= test.take(look, look.p_value())
    return alarms


def test_blocks_are_looked_at_while_they_fill_and_states_go_on(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (6, 10))
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(40, 4))
    parts = np.concatenate([rng.normal(size=(20, 4)), rng.normal(size=(10, 4)) + 4])
    test, resumed = EmbeddingTest(reference, 0.05), EmbeddingTest(reference, 0.05)
    assert np.flatnonzero(fed(test, parts)).tolist() == [25, 29]
    allowed = [block_level(block, 0.05) / 2 for block in (0, 0, 1, 1, 2, 2)]
    assert [look[1] for look in test.looks] == allowed and not test.waiting and test.block == 3
    for split in (5, 6, 14):
        half, resumed = EmbeddingTest(reference, 0.05), EmbeddingTest(reference, 0.05)
        fed(half, parts[:split])
        resumed.restore(half.state())
        fed(resumed, parts[split:])
        assert resumed.state() == test.state()


def test_a_window_is_the_parts_since_the_block_began(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (2, 3))
    test, parts = EmbeddingTest(np.zeros((20, 1)), 0.05), np.arange(8.0)[:, None]
    assert [window for window, _ in windows_of(test, parts)] == [[0, 1], [0, 1, 2], [3, 4], [3, 4, 5], [6, 7]]


def windows_of(test: EmbeddingTest, parts: np.ndarray) -> list[tuple[list[float], float]]:
    """Parts and allowed p-value of each comparison."""
    found = []
    for part in parts:
        test.add(part)
        while (look := test.due_look()) is not None:
            found.append((look.window[:, 0].tolist(), look.allowed))
            test.take(look, 1.0)
    return found


@pytest.mark.parametrize("split", [0, 13, 15, 16, 23, 24, 25, 47])
def test_blocks_that_are_not_compared_are_skipped(monkeypatch, split):
    monkeypatch.setattr(embedding_test, "LOOKS", (2, 3))
    first, second, parts = (
        EmbeddingTest(np.zeros((20, 1)), 0.05),
        EmbeddingTest(np.zeros((20, 1)), 0.05),
        np.arange(51.0)[:, None],
    )
    found = windows_of(first, parts[:split])
    second.restore(json.loads(json.dumps(first.state())))
    found += windows_of(second, parts[split:])
    starts = [3 * block for block in (0, 1, 2, 3, 4, 8, 16)]
    expected = []
    for index, start in enumerate(starts):
        allowed = block_level(index, 0.05) / 2
        expected += [([start, start + 1], allowed), ([start, start + 1, start + 2], allowed)]
    assert found == expected and second.block == 32


def test_parts_beyond_two_blocks_are_left_out_while_a_comparison_lasts(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (2, 3))
    test, parts = EmbeddingTest(np.zeros((20, 1)), 0.05), np.arange(30.0)[:, None]
    for part in parts[:20]:
        test.add(part)  # of which no comparison is made yet
    assert np.ravel(test.waiting).tolist() == [0, 1, 2, 3, 4, 5]
    assert [window for window, _ in windows_of(test, parts[20:21])] == [[0, 1], [0, 1, 2], [3, 4], [3, 4, 5]]
    assert not test.waiting and test.block == 2
    # Of those that wait when the next block is far off, none is left
    test.block, test.looked = 4, 0
    for part in parts[:20]:
        test.add(part)
    windows_of(test, parts[:1])
    assert not test.waiting and test.block == 8 and test.to_skip == 9 - 3


def test_states_keep_waiting_parts_bit_for_bit_and_those_of_earlier_releases_go_on():
    parts = np.random.default_rng(6).normal(size=(5, 3))
    test, resumed, former = (EmbeddingTest(np.zeros((20, 3)), 0.05) for _ in range(3))
    for part in parts:
        test.add(part)
    state = json.loads(json.dumps(test.state()))
    assert isinstance(state["waiting"], str)
    resumed.restore(state)
    former.restore({"waiting": parts.tolist(), "blocks": [], "block": 3, "looked": 0})
    for one in (resumed, former):
        np.testing.assert_array_equal(one.waiting, parts)
        one.add(parts[0])
    assert former.block == 3 and former.level == 0.05
    for waiting in ("?", "AAAA", [[1.0]]):
        with pytest.raises(ValueError):
            resumed.restore(state | {"waiting": waiting})


def test_a_late_state_of_an_earlier_release_begins_anew_with_the_level_that_is_left(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (2, 3))
    test, again = EmbeddingTest(np.zeros((20, 1)), 0.05), EmbeddingTest(np.zeros((20, 1)), 0.05)
    test.restore({"block": 6, "looked": 1, "waiting": [[1.0], [2.0]], "blocks": [(0.5, 0.001)]})
    spent = sum(block_level(block, 0.05) for block in range(7))
    assert test.block == test.looked == 0 and not test.waiting and test.looks == [(0.5, 0.001)]
    again.restore(json.loads(json.dumps(test.state())))  # which takes from the level once only
    for one in (test, again):
        later = sum(allowed for _, allowed in windows_of(one, np.zeros((300, 1))))
        assert 0.5 * (0.05 - spent) < later < 0.05 - spent


def test_states_of_full_blocks_only_go_on_at_the_next_block(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (2, 3))
    test = EmbeddingTest(np.zeros((20, 1)), 0.05)
    test.restore({"waiting": [[1.0]], "blocks": [(0.5, 0.02), (0.4, 0.01)]})
    test.add(np.ones(1))
    assert test.due_look().allowed == block_level(2, 0.05) / 2


def test_few_looks_are_kept(monkeypatch):
    monkeypatch.setattr(embedding_test, "LOOKS", (1,))
    monkeypatch.setattr(embedding_test, "KEPT_LOOKS", 3)
    test = EmbeddingTest(np.zeros((20, 1)), 0.05)
    fed(test, np.zeros((9, 1)))
    assert len(test.looks) == 3 and test.block == 16 and test.looks[-1][1] == block_level(5, 0.05)


def test_what_varies_anyway_does_not_hide_a_change():
    """Two nearly equal features move apart by much less than they vary."""
    rng = np.random.default_rng(5)
    common, apart = rng.normal(size=(60, 1)), rng.normal(size=(60, 2)) * 0.1
    features = common + apart
    features[40:, 0] += 0.5
    assert permutation_p_value(features[:40], features[40:], 0.001, (0,)) <= 0.001


def test_many_references_are_drawn_from():
    features = np.arange(2000.0)[:, None]
    test = EmbeddingTest(features, 0.05)
    assert len(test.reference) == embedding_test.MOST_REFERENCES and np.isin(test.reference, features).all()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (np.zeros((19, 3)), "20 good parts"),
        (np.zeros(30), "20 good parts"),
        (np.full((20, 2), np.nan), "finite"),
    ],
)
def test_unusable_references_are_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingTest(reference, 0.05)


def test_features_of_another_length_are_refused():
    test = EmbeddingTest(np.zeros((20, 3)), 0.05)
    with pytest.raises(ValueError, match="3 finite numbers"):
        test.add(np.zeros(4))
    assert not test.waiting
