"""The rule of tuning: what candidates are worth, how far they are from the present score, and when one is taken."""

import numpy as np
import pytest
from diffad.evaluation.metrics import localization_metrics
from diffad.evaluation.tuning import (
    MARGIN,
    PENALTY,
    ScoreCandidate,
    candidates,
    choose,
    detection_worth,
    localization_worth,
)
from scipy.stats import norm, t

PRESENT = ScoreCandidate({"rgb": 1.0, "residual": 1.0}, 0.01)


def test_candidates_are_the_present_score_its_neighbours_and_few_terms():
    tried = candidates(PRESENT, ["rgb", "residual", "coarse"])
    assert tried[0] == PRESENT
    shares = [candidate.shares for candidate in tried]
    assert {"rgb": 1.0} in shares and {"coarse": 1.0} in shares
    assert {"rgb": pytest.approx(2 / 3), "residual": pytest.approx(1 / 3)} in shares
    assert {term: pytest.approx(1 / 3) for term in ("rgb", "residual", "coarse")} in shares
    assert len(tried) == 7 + 2  # all subsets, and a doubling of each of two terms
    assert {candidate.area for candidate in tried} == {0.01}
    of_areas = candidates(PRESENT, ["rgb", "residual", "coarse"], (0.01, 0.1))
    assert len(of_areas) == 2 * len(tried) and of_areas[0] == PRESENT


def test_distance_is_the_part_of_the_score_that_differs():
    assert PRESENT.distance(ScoreCandidate({"residual": 3.0, "rgb": 3.0}, 0.01)) == 0
    assert PRESENT.distance(ScoreCandidate({"rgb": 1.0}, 0.01)) == pytest.approx(0.5)
    assert PRESENT.distance(ScoreCandidate({"coarse": 5.0}, 0.01)) == pytest.approx(1)
    assert PRESENT.distance(ScoreCandidate({"rgb": 1.0, "residual": 1.0}, 0.1)) == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [None, 5])
def test_localization_worth_is_ap_and_aupro_of_the_image_among_good_ones(levels):
    """Two regions; with few levels scores are equal, of normal and defective pixels too."""
    rng = np.random.default_rng(0)
    maps, masks = rng.normal(size=(4, 12, 14)), np.zeros((4, 12, 14), bool)
    masks[3, 2:5, 3:6] = masks[3, 8, 8] = True
    maps[3][masks[3]] += 1
    if levels:
        maps = np.round(maps * levels) / levels
    metrics = localization_metrics(maps, masks)
    worth = localization_worth(maps[3], masks[3], np.sort(maps[:3], axis=None))
    expected = (metrics["pixel_ap"] + metrics["aupro_30"]) / 2
    assert worth == pytest.approx(expected, abs=1e-9 if levels is None else 2e-3)


def test_detection_worth_is_a_smoothed_auroc():
    rng = np.random.default_rng(1)
    good, defective = rng.normal(size=7), rng.normal(1, 1, size=4)
    variance = (3 + sum((score - good.mean()) ** 2 for score in good)) / (3 + 7 - 1)
    expected = [[norm.cdf((high - low) / variance**0.5) for low in good] for high in defective]
    np.testing.assert_allclose(detection_worth(defective, good), expected, rtol=1e-12)


def naive_choice(tried, worths):
    """The rule by loops: the best of the others for each image, its gain there, and their standard error."""
    of_images = [[np.mean(value) for value in of_candidate] for of_candidate in worths]

    def best(images):
        value = [np.mean([row[i] for i in images]) for row in of_images]
        value = [v - PENALTY / len(images) * candidate.distance(tried[0]) for v, candidate in zip(value, tried)]
        return value.index(max(value))

    count = len(of_images[0])
    return [worths[best([j for j in range(count) if j != i])][i] - worths[0][i] for i in range(count)], best(range(count))


@pytest.mark.parametrize("pairs", [False, True])
def test_the_gain_is_that_of_images_which_did_not_choose(pairs):
    rng = np.random.default_rng(2)
    tried = candidates(PRESENT, ["rgb", "residual", "coarse"])
    worths = rng.uniform(0.3, 0.9, size=(len(tried), 5, 6) if pairs else (len(tried), 5))
    worths[4] += 0.4
    of_candidate = {id(candidate): worth for candidate, worth in zip(tried, worths)}
    choice = choose(tried, lambda candidate: of_candidate[id(candidate)])
    gains, index = naive_choice(tried, worths)
    gains = np.array(gains)
    variance = gains.var(ddof=1) / 5
    if pairs:
        variance = gains.mean(axis=1).var(ddof=1) / 5 + gains.mean(axis=0).var(ddof=1) / 6
    assert choice.gain == pytest.approx(gains.mean()) and choice.standard_error == pytest.approx(variance**0.5)
    assert choice.before == pytest.approx(worths[0].mean())
    assert choice.is_changed and choice.chosen == tried[index] == tried[4]
    assert choice.gain > max(MARGIN, t.ppf(0.9, 4) * choice.standard_error)


def chosen_of(tried, worths):
    """The choice where the candidates are worth the rows of an array."""
    rows = iter(worths)
    return choose(tried, lambda candidate: next(rows))


def test_noise_changes_nothing_as_a_rule():
    """All candidates are equally good; the best in sample seems better by far, and is seldom taken."""
    tried = candidates(PRESENT, ["kl", "rgb", "feature", "residual", "mahalanobis"])
    rng, changed, apparent = np.random.default_rng(3), 0, []
    for _ in range(200):
        worths = rng.uniform(0.2, 0.8, size=5) + rng.normal(0, 0.1, size=(len(tried), 5))
        changed += chosen_of(tried, worths).is_changed
        apparent.append(worths.mean(axis=1).max() - worths[0].mean())
    assert np.mean(apparent) > 0.05 and changed <= 0.15 * 200


def test_one_good_image_can_judge_no_verdict():
    tried = candidates(PRESENT, ["rgb", "residual"])
    choice = chosen_of(tried, [np.full((4, 1), 0.5), *(np.full((4, 1), 1.0) for _ in tried[1:])])
    assert not choice.is_changed and choice.gain > 0.4 and choice.standard_error == np.inf


def test_few_defects_are_trusted_less():
    """The same gain outweighs the distance from the present score for many images, not for two."""
    tried = [PRESENT, ScoreCandidate({"coarse": 1.0}, 0.01)]
    for count, is_changed in ((3, False), (30, True)):
        assert chosen_of(tried, [np.full(count, 0.5), np.full(count, 0.52)]).is_changed == is_changed
