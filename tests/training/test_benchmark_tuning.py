"""tuning.py: draws tune on their own images and are judged on all others, untuned and tuned alike."""

import numpy as np
import pytest
from diffad.evaluation.measured_terms import MeasuredTerms
from diffad.evaluation.metrics import detection_metrics, localization_metrics
from diffad.evaluation.tuning import AREAS, ScoreCandidate
from diffad_training.benchmarks.tuning import judge, measure_gain, table_row, verdict_scores

GOOD, SIZE = 6, (12, 12)
PRESENT, VERDICT = ScoreCandidate({"kl": 1.0}, 0.01), {"kl": 1.0}


def measured(images: int, is_defective: bool, seed: int) -> MeasuredTerms:
    """Defects that `rgb` sees and `kl` doesn't."""
    rng = np.random.default_rng(seed)
    maps = {term: rng.gamma(1, size=(GOOD + images, *SIZE)) for term in ("kl", "rgb")}
    highest = {(term, area): rng.normal(size=GOOD + images) for term in maps for area in AREAS}
    masks = None
    if is_defective:
        masks = np.zeros((images, *SIZE), bool)
        masks[:, 3:6, 4:8] = True
        maps["rgb"][GOOD:][masks] += 5
        for area in AREAS:
            highest["rgb", area][GOOD:] += 4
    return MeasuredTerms(maps, highest, masks, GOOD)


@pytest.fixture(scope="module")
def of_test() -> tuple[MeasuredTerms, MeasuredTerms]:
    return measured(9, True, 1), measured(7, False, 2)


def test_the_judges_metrics_are_those_of_the_images_that_are_used(of_test):
    defective, good = of_test
    used = np.ones((1, 16))
    used[0, [2, 5]] = 0
    chosen = np.flatnonzero(used[0])
    candidate = ScoreCandidate({"kl": 1.0, "rgb": 2.0}, 0.01)
    metrics = judge(defective, good, [candidate], [candidate], used)
    maps = np.concatenate([part.maps["kl"][GOOD:] + 2 * part.maps["rgb"][GOOD:] for part in of_test])
    masks = np.concatenate([defective.masks, np.zeros((7, *SIZE), bool)])
    expected = localization_metrics(maps[chosen], masks[chosen])
    scores = np.concatenate([verdict_scores(part, candidate) for part in of_test])
    expected |= detection_metrics(scores[chosen], masks[chosen].any(axis=(1, 2)))
    for name, (value,) in metrics.items():
        assert value == pytest.approx(expected[name], abs=2e-3), name


def test_a_gain_is_measured(of_test):
    result = measure_gain(*of_test, PRESENT, VERDICT, draws=3, defects=4)
    assert np.mean(result["tuned"]["pixel_ap"]) > np.mean(result["untuned"]["pixel_ap"]) + 0.3
    assert np.mean(result["tuned"]["image_auroc"]) > np.mean(result["untuned"]["image_auroc"]) + 0.2
    assert all(chosen["map"] is not None for chosen in result["chosen"])
    assert table_row({**result, "model": "part"}).startswith("| part | 3/")
