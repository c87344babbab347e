"""The benchmark of few good images: what is drawn and measured, and its table."""

import numpy as np
import pytest
from diffad.data import Sample, evaluation_samples
from diffad_training.benchmarks import few_images
from diffad_training.benchmarks.few_images import METRICS, drawn, every, table
from diffad_training.benchmarks.robustness import Scores, metrics_of

SAMPLES = [Sample(str(i), lambda: None, defect="good" if i < 5 else "crack") for i in range(9)]


def test_draws_are_of_their_seed_without_repetition():
    chosen = drawn(SAMPLES, 4, 1)
    assert chosen == drawn(SAMPLES, 4, 1) != drawn(SAMPLES, 4, 2)
    assert len({sample.name for sample in chosen}) == 4 and drawn(SAMPLES, 9, 0) == SAMPLES


def test_every_so_many_of_each_kind_are_measured():
    assert [sample.name for sample in every(SAMPLES, 2)] == ["0", "2", "4", "5", "7"]
    assert every(SAMPLES, 1) == SAMPLES


def test_a_detector_that_knows_the_truth_is_perfect(mvtec_folder, monkeypatch):
    monkeypatch.setattr(few_images, "PROTOCOL_MAP_SIZE", (16, 24))
    samples = evaluation_samples(mvtec_folder)
    masks = few_images.read_truth(samples, (16, 24))
    is_defective = np.array([sample.is_defective for sample in samples])
    truth = masks.any(axis=(1, 2)).astype(float)
    found = metrics_of(Scores(masks.astype(float), truth), is_defective, masks)
    assert [found[metric] for metric in METRICS] == pytest.approx([1, 1, 1], abs=1e-3)
    assert metrics_of(Scores(masks.astype(float), -truth), is_defective, masks)["image_auroc"] == 0


def test_means_and_spreads_are_over_draws():
    def result(draw: int, auroc: float, detector: str = "diffad") -> dict:
        metrics = dict.fromkeys(METRICS, 0.5) | {"image_auroc": auroc}
        return {"category": "grid", "detector": detector, "count": 4, "draw": draw, "metrics": metrics}

    row = table([result(0, 0.8), result(1, 0.9), result(0, 1.0, "PaDiM (anomalib)")]).splitlines()[2]
    assert row == "| 4 | 2 | 85.0 ± 5.0 / 50.0 ± 0.0 / 50.0 ± 0.0 | 100.0 ± 0.0 / 50.0 ± 0.0 / 50.0 ± 0.0 |"
    assert table([]) == ""
