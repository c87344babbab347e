"""The cascade's score: ranks of two stages, and what they are worth."""

import numpy as np
import pytest
from diffad_training.benchmarks.cascade import cascaded, mean_time, milliseconds, table, worth


def test_ranks_compare_as_a_loop_over_pairs_says():
    draw = np.random.default_rng(0)
    first, own = draw.integers(0, 6, 40).astype(float), draw.integers(0, 6, 40).astype(float)
    ranks = cascaded(first, own, limit=3.0)
    for i in range(40):
        for j in range(40):
            if (first[i] >= 3) != (first[j] >= 3):
                is_higher = first[i] >= 3
            else:
                is_higher = own[i] > own[j] if first[i] >= 3 else first[i] > first[j]
            assert (ranks[i] > ranks[j]) == is_higher


def test_what_a_cascade_is_worth():
    calibration = np.arange(19.0)
    first, own = np.array([1.0, 5, 5, 1]), np.array([0.0, 30, 2, 40])
    is_defective = np.array([False, True, False, True])
    alone = worth((calibration, first), (calibration, own), is_defective, -np.inf)
    assert alone["found"] == 1 and alone["image AUROC"] == 1 and alone["good parts that go on"] == 1
    assert alone["false alarms"] == 0 and alone["defective parts that pass"] == 0
    passed = worth((calibration, first), (calibration, own), is_defective, 3.0)
    assert passed["found"] == 0.5 and passed["defective parts that pass"] == 0.5 and passed["good parts that go on"] == 0.5
    assert passed["image AUROC"] == pytest.approx(0.625)  # the second defective part is level with a good one that passed


def test_table_takes_times_from_the_comparison_of_precisions(tmp_path):
    assert mean_time(10, 50, 0.2, False) == 20 and mean_time(10, 50, 1.0, True) == 50
    columns = ("image AUROC", "found", "false alarms", "good parts that go on", "defective parts that pass")
    rows = [{"quantile": q, **dict.fromkeys(columns, 0.5)} for q in (0.0, 0.8)]
    lines = table([{"category": "grid", "first": "fast", "rows": rows}], {("grid", "fast"): 10, ("grid", "balanced"): 40})
    assert lines.splitlines()[2].endswith("| 40 |") and lines.splitlines()[3].endswith("| 30 |")
    assert milliseconds(tmp_path / "none.jsonl") == {}
