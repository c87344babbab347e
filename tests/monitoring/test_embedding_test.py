"""MMD and its permutation test against plain loops, enumeration and simulation."""

import itertools

import numpy as np
import pytest
from diffad.monitoring import embedding_test
from diffad.monitoring.embedding_test import EmbeddingTest, block_level, discrepancy, kernel_matrix, permutation_p_value


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


def test_kernel_is_gaussian_of_the_median_distance():
    features = np.random.default_rng(1).normal(size=(6, 2)) * [1, 100]
    standard = (features - features.mean(0)) / features.std(0)
    squared = ((standard[:, None] - standard[None]) ** 2).sum(2)
    median = np.median([squared[i, j] for i in range(6) for j in range(i)])
    np.testing.assert_allclose(kernel_matrix(features), np.exp(-squared / median), rtol=1e-9)


def test_p_value_is_the_share_of_all_divisions():
    rng = np.random.default_rng(2)
    reference, block = rng.normal(size=(5, 2)), rng.normal(size=(4, 2)) + 1.5
    kernel = kernel_matrix(np.concatenate([reference, block]))
    values = [discrepancy(kernel, weights_of(list(first), 9)[None])[0] for first in itertools.combinations(range(9), 5)]
    observed = discrepancy(kernel, weights_of([0, 1, 2, 3, 4], 9)[None])[0]
    exact = np.mean(np.array(values) >= observed - 1e-12)
    # Drawn to the end: the level is above the p-value
    assert exact < 0.05
    p_value = permutation_p_value(reference, block, 2 * exact, (0,))
    assert p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * 2 * exact / embedding_test.DIVISIONS_PER_LEVEL))


def test_p_values_keep_their_level():
    rng, level = np.random.default_rng(3), 0.1
    alarms = [
        permutation_p_value(rng.normal(size=(20, 3)), rng.normal(size=(12, 3)), level, (seed,)) <= level for seed in range(200)
    ]
    assert abs(np.mean(alarms) - level) < 3 * np.sqrt(level * (1 - level) / 200)


def test_levels_of_all_blocks_add_up_to_the_level_at_most():
    levels = [block_level(block, 0.01) for block in range(5000)]
    assert 0.009 < sum(levels) <= 0.01 and min(levels) > 0


def test_blocks_are_compared_when_full_and_states_go_on(monkeypatch):
    monkeypatch.setattr(embedding_test, "BLOCK", 10)
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(40, 4))
    parts = np.concatenate([rng.normal(size=(20, 4)), rng.normal(size=(10, 4)) + 4])
    test, resumed = EmbeddingTest(reference, 0.05), EmbeddingTest(reference, 0.05)
    alarms = [test.update(part) for part in parts]
    assert np.flatnonzero(alarms).tolist() == [29] and len(test.blocks) == 3
    half = EmbeddingTest(reference, 0.05)
    for part in parts[:14]:
        half.update(part)
    resumed.restore(half.state())
    for part in parts[14:]:
        resumed.update(part)
    assert resumed.state() == test.state()


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
        test.update(np.zeros(4))
    assert not test.waiting
