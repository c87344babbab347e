"""Whether a sample of good parts is of the production of before: seldom refused if it is, and parts that were let pass are."""

import numpy as np
import pytest
from diffad.monitoring.sample_check import LEVEL, sample_objection
from scipy.stats import betabinom


def test_unchanged_samples_are_seldom_refused():
    rng = np.random.default_rng(0)
    refused = sum(sample_objection(rng.normal(size=40), rng.normal(size=60)) is not None for _ in range(150))
    assert refused / 150 <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / 150)


def test_another_product_is_refused():
    rng = np.random.default_rng(1)
    objection = sample_objection(rng.normal(size=60), rng.normal(8, 1, size=30))
    assert "not of the production" in objection and "30 called defective" in objection


def test_parts_that_were_let_pass_are_refused_by_the_beta_binomial_law():
    scores = np.linspace(0, 1, 119)  # the 114th is the threshold at 5 %
    parts = np.random.default_rng(2).permutation(np.tile(scores[:113], 2)) - 1e-6
    assert sample_objection(scores, parts[:40]) is None
    objection = sample_objection(scores, parts)
    p_value = betabinom.pmf(0, len(parts), 6, 114)
    assert p_value < 0.01 and f"calls none of {len(parts)} defective" in objection and f"p = {p_value:.2g}" in objection


@pytest.mark.parametrize("count", [1, 2])
def test_few_calibration_scores_are_no_error(count):
    assert sample_objection(np.arange(float(count)), [0.5] * 5) is None
