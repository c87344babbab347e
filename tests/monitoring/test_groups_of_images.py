"""Monitors of models whose thresholds count groups of images, while production shows one image of each part."""

import numpy as np
import pytest
from diffad.monitoring.drift_monitor import EMBEDDINGS, REJECTS, SCORES, DriftMonitor
from diffad.monitoring.sample_check import sample_objection
from diffad.scoring.conformal import threshold_rank
from diffad.scoring.drawn_images import drawn_images

GROUPS, IMAGES, PARTS, LEVEL = 60, 5, 200, 0.05


def photographs(rng: np.random.Generator, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores `(parts, images)` and features `(parts, images, 2)`: what a part is like and how each photograph came out."""
    features = rng.normal(size=(parts, 1, 2)) + rng.normal(size=(parts, IMAGES, 2))
    return features[..., 0], features


def monitored(seed: int, shift: float = 0.0, by_highest: bool = False) -> dict[str, int]:
    """Alarms on one photograph of each part, by the highest photographs of groups or by drawn ones."""
    rng = np.random.default_rng((12, seed))
    scores, features = photographs(rng, GROUPS)
    drawn = drawn_images(np.arange(scores.size).reshape(scores.shape), seed)
    chosen = np.arange(GROUPS) * IMAGES + scores.argmax(axis=1) if by_highest else drawn
    single = scores.ravel()[chosen]
    below = chosen[np.argsort(single)[: threshold_rank(GROUPS, 0.05) - 1]]
    options = {"reference_features": features.reshape(-1, 2)[below]} | ({} if by_highest else {"single_scores": single})
    monitor = DriftMonitor(scores.max(axis=1), level=LEVEL, seed=seed, **options)
    assert monitor.cut <= monitor.threshold == np.sort(scores.max(axis=1))[threshold_rank(GROUPS, 0.05) - 1]
    for score, of_part in zip(*(values[:, 0] for values in photographs(rng, PARTS))):
        monitor.update(score + shift, of_part)
    return monitor.alarms


def test_unchanged_production_seldom_alarms_beside_drawn_images_and_nearly_always_beside_the_highest():
    streams = 100
    alarms = [monitored(seed) for seed in range(streams)]
    assert np.mean([bool(of_stream) for of_stream in alarms]) <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / streams)
    highest = [monitored(seed, by_highest=True) for seed in range(20)]
    for test in (SCORES, EMBEDDINGS):
        assert np.mean([test in of_stream for of_stream in highest]) > 0.8


def test_changes_are_seen_beside_drawn_images():
    alarms = [monitored(seed, shift=1.5) for seed in range(10)]
    assert np.mean([SCORES in of_stream for of_stream in alarms]) > 0.8
    assert np.mean([REJECTS in of_stream for of_stream in (monitored(seed, shift=5.0) for seed in range(10))]) > 0.8


def test_new_images_are_not_refused_because_the_model_was_calibrated_by_groups():
    """The share of refused samples of unchanged parts, of single photographs."""
    refused = {"drawn": 0, "highest": 0}
    for seed in range(50):
        rng = np.random.default_rng((13, seed))
        (scores, _), (new, _) = photographs(rng, GROUPS), photographs(rng, 80)
        drawn = scores.ravel()[drawn_images(np.arange(scores.size).reshape(scores.shape), seed)]
        for name, single in {"drawn": drawn, "highest": None}.items():
            refused[name] += sample_objection(scores.max(axis=1), new[:, 0], LEVEL, single) is not None
    assert refused["drawn"] <= 50 * LEVEL + 2 * np.sqrt(50 * LEVEL * (1 - LEVEL)) and refused["highest"] > 40


def test_parts_between_cut_and_threshold_are_good_and_in_no_test():
    highest, single = np.arange(1.0, 61.0) + 100, np.arange(1.0, 61.0)
    reference = np.random.default_rng(0).normal(size=(57, 2))
    monitor = DriftMonitor(highest, reference_features=reference, single_scores=single[::-1])
    assert (monitor.cut, monitor.threshold) == (58.0, 158.0)
    for score in (57.5, 58.5, 158.0, 158.5):
        monitor.update(score, np.zeros(2))
    assert monitor.state.rejected == 1 and monitor.score_test.parts == 1 and len(monitor.embedding_test.waiting) == 1


def test_a_state_belongs_to_the_single_scores_and_those_must_fit():
    highest, single = np.arange(1.0, 61.0), np.arange(1.0, 61.0) - 0.5
    plain, monitor = DriftMonitor(highest), DriftMonitor(highest, single_scores=single)
    assert len({plain.identity, monitor.identity, DriftMonitor(highest, single_scores=single - 1).identity}) == 3
    same = DriftMonitor(highest, single_scores=highest)  # groups of one
    assert same.cut == same.threshold == plain.threshold
    for wrong in (single[1:], highest + 0.1, single.reshape(2, 30)):
        with pytest.raises(ValueError, match="single_scores must be|list of finite numbers"):
            DriftMonitor(highest, single_scores=wrong)
