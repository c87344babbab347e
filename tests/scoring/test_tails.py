"""Tail probabilities in decades: quantiles by numpy, the tail by scipy, weights by repetition."""

import numpy as np
import pytest
import torch
from diffad.scoring.tails import KNOT_SHARES, SHAPE_LIMITS, Tail, decades, fit_tail
from scipy.stats import genpareto


def tail_of(*of_terms: np.ndarray, weights: np.ndarray | None = None) -> Tail:
    """Of several terms or categories, as tensors."""
    fitted = [fit_tail(values, np.ones(len(values)) if weights is None else weights) for values in of_terms]
    return Tail(*(torch.from_numpy(np.concatenate(parts)) for parts in zip(*fitted)))


def decades_of(values: np.ndarray, tail: Tail) -> np.ndarray:
    return decades(torch.as_tensor(values, dtype=torch.float64)[None, None], tail)[0, 0].numpy()


@pytest.mark.parametrize("shape", [0.01, 0.2, 0.4])
def test_decades_of_a_generalised_pareto_are_those_of_scipy(shape):
    """Samples that are the distribution's quantiles, so that nothing is drawn."""
    n = 200_000
    values = 5 + genpareto.ppf((np.arange(n) + 0.5) / n, shape, scale=3)
    tail = tail_of(values)
    new = 5 + genpareto.isf([0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-6], shape, scale=3)
    expected = -np.log10(genpareto.sf(new - 5, shape, scale=3))
    np.testing.assert_allclose(decades_of(new, tail), expected, rtol=0.03)
    assert tail.shape.item() == pytest.approx(shape, abs=0.03)


def test_beyond_the_last_knot_is_the_fitted_pareto_of_a_hundredth():
    tail = Tail(torch.linspace(0, 4, len(KNOT_SHARES), dtype=torch.float64)[None], torch.tensor([0.7]), torch.tensor([0.3]))
    new = np.array([4.0, 4.1, 5.0, 40.0, 1e6])
    expected = -np.log10(0.01 * genpareto.sf(new - 4, 0.3, scale=0.7))
    np.testing.assert_allclose(decades_of(new, tail), expected, rtol=1e-6)


def test_between_knots_the_logarithm_is_interpolated():
    values = np.random.default_rng(0).gamma(2, size=5001)
    knots = np.interp(KNOT_SHARES, (np.arange(5001) + 0.5) / 5001, np.sort(values))
    tail = tail_of(values)
    np.testing.assert_allclose(tail.knots[0], knots, rtol=1e-12)
    new = np.linspace(-1, knots[-1], 300)
    expected = np.interp(new, knots, -np.log10(1 - np.array(KNOT_SHARES)))
    np.testing.assert_allclose(decades_of(new, tail), expected, rtol=1e-9, atol=1e-12)
    assert decades_of(np.array([knots[-1]]), tail)[0] == pytest.approx(2, rel=1e-9)


SAMPLES = {
    "gamma": np.random.default_rng(0).gamma(2, size=3000),
    "heavy": np.random.default_rng(0).standard_t(df=1, size=3000),
    "bounded": np.random.default_rng(0).uniform(size=3000),
    "large": 1e6 + np.random.default_rng(0).normal(size=3000),
    "two values": np.repeat([0.0, 1.0], [2990, 10]),
    "constant": np.full(3000, 7.0),
    "zeros": np.zeros(3000),
    "few": np.array([1.0, 2.0, 4.0]),
    "one": np.array([2.5]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SAMPLES)
def test_decades_are_finite_never_negative_and_ascend(kind, dtype):
    tail = Tail(*(values.to(dtype) for values in tail_of(SAMPLES[kind])))
    low, high = tail.knots[0, 0].item(), tail.knots[0, -1].item()
    spread = max(high - low, 1e-3 * abs(high), 1e-3)
    new = torch.cat([torch.linspace(low - spread, high + 3 * spread, 500), torch.tensor([1e9])]).to(dtype)
    result = decades(new[None, None], tail)[0, 0]
    assert result.isfinite().all() and (result >= 0).all() and (result.diff() >= 0).all()
    assert result[0] == 0 and result[-1] > 2
    assert tail.scale > 0 and SHAPE_LIMITS[0] <= round(tail.shape.item(), 6) <= SHAPE_LIMITS[1]
    if kind not in ("few", "one", "constant", "zeros", "two values"):
        quantile = torch.tensor(np.quantile(SAMPLES[kind], 0.99), dtype=dtype)
        assert decades(quantile[None, None, None], tail).item() == pytest.approx(2, abs=0.03)


def test_a_pixel_above_constant_ones_is_rare():
    tail = tail_of(SAMPLES["constant"])
    assert decades_of(np.array([6.9, 7.1]), tail).tolist() == [0.0, pytest.approx(decades_of(np.array([7.1]), tail)[0])]
    assert decades_of(np.array([7.1]), tail)[0] > 4


def test_weights_count_as_repetitions():
    rng = np.random.default_rng(0)
    values, weights = rng.gamma(2, size=2000), rng.integers(1, 6, size=2000)
    for weighted, repeated in zip(tail_of(values, weights=weights), tail_of(np.repeat(values, weights)), strict=True):
        np.testing.assert_allclose(weighted, repeated, rtol=0.02, atol=5e-3)


def test_the_order_and_the_unit_of_the_pixels_do_not_matter():
    values = SAMPLES["gamma"]
    tail, shuffled, scaled = tail_of(values), tail_of(np.random.default_rng(1).permutation(values)), tail_of(4 * values + 16)
    assert all(torch.equal(a, b) for a, b in zip(tail, shuffled, strict=True))
    new = np.linspace(0, 30, 50)
    np.testing.assert_allclose(decades_of(4 * new + 16, scaled), decades_of(new, tail), rtol=1e-9, atol=1e-9)


def test_images_of_a_batch_have_tails_of_their_own():
    tails = tail_of(SAMPLES["gamma"], SAMPLES["bounded"], SAMPLES["heavy"])
    values = torch.from_numpy(np.random.default_rng(2).normal(1, 2, size=(3, 4, 5)))
    together = decades(values, tails)
    for i in range(3):
        alone = decades(values[i : i + 1], Tail(*(part[i : i + 1] for part in tails)))
        assert torch.equal(together[i], alone[0])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(broken):
    with pytest.raises(ValueError, match="not finite"):
        fit_tail(np.array([1.0, broken, 2.0]), np.ones(3))
