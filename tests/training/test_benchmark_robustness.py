"""The benchmark of changed test images: what a detector sees, and what is measured."""

import numpy as np
import pytest
from diffad.data import evaluation_samples
from diffad_training.benchmarks import robustness
from diffad_training.benchmarks.robustness import CHANGES, NONE, SHIFT, Scores, measure, with_change


@pytest.fixture
def samples(mvtec_folder):
    return evaluation_samples(mvtec_folder)


def test_images_are_changed_when_read_and_masks_move_with_them(samples):
    defective = next(sample for sample in samples if sample.is_defective)
    image, mask = np.asarray(defective.read()), defective.mask.read()
    for name in CHANGES:
        changed = with_change(defective, name)
        assert np.array_equal(np.asarray(changed.read()), image) == (name == NONE), name
        moved = changed.mask.read()
        if name == SHIFT:
            np.testing.assert_array_equal(moved[2:, 2:], mask[:-2, :-2])
            np.testing.assert_array_equal(np.asarray(changed.read())[2:, 2:], image[:-2, :-2])
        else:
            np.testing.assert_array_equal(moved, mask)


def test_detectors_are_measured_after_every_change(mvtec_folder, monkeypatch):
    """One that knows the truth, and calls bright images defective."""
    monkeypatch.setattr(robustness, "PROTOCOL_MAP_SIZE", (16, 24))

    def detector(samples, masks):
        truth = masks.any(axis=(1, 2)).astype(float)
        brightness = np.array([np.asarray(sample.read()).mean() for sample in samples])
        return Scores(masks.astype(float), truth, brightness > 115)

    results = list(measure(detector, mvtec_folder))
    assert [result["change"] for result in results] == list(CHANGES)
    for result in results:
        assert [result["metrics"][name] for name in robustness.METRICS] == pytest.approx([1, 1, 1], abs=1e-3)
    false_alarms = {result["change"]: result["metrics"]["false_alarms"] for result in results}
    assert false_alarms["brightness x 0.8"] == 0 and false_alarms["brightness x 1.25"] == 1
