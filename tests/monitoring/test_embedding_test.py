"""MMD and its permutation test against plain loops, enumeration and simulation."""

import itertools

import numpy as np
import pytest
from diffad.monitoring import embedding_test
from diffad.monitoring.embedding_test import EmbeddingTest, block_level, discrepancy, kernel_matrix, permutation_p_value
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
    windows = []
    for part in parts:
        test.add(part)
        while (look := test.due_look()) is not None:
            windows.append(look.window[:, 0].tolist())
            test.take(look, 1.0)
    assert windows == [[0, 1], [0, 1, 2], [3, 4], [3, 4, 5], [6, 7]]


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
    fed(test, np.zeros((7, 1)))
    assert len(test.looks) == 3 and test.block == 7 and test.looks[-1][1] == block_level(6, 0.05)


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
