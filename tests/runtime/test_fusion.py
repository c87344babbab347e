"""Term maps fused as arrays: the same map and score as from the calibration's tensors."""

import numpy as np
import pytest
import torch
from diffad import Calibration
from diffad.export.folder import stored_scores, stored_statistics
from diffad.imaging.maps import smooth_map
from diffad.runtime.calibration import StoredCalibration
from diffad.runtime.fusion import fuse
from diffad.scoring.tails import Tail, decades, decades_of_array
from fixed_maps import fit, random_maps

SETTINGS = {
    "standardised": {},
    "paper": {"weights": {"kl": 0.5, "feature": 0.5}, "standardized_terms": ("kl",), "per_image": True, "top_k": 5},
    "tails": {"fusion": "tails", "weights": {"rgb": 2.0, "residual": 1.0}},
    "verdict": {"fusion": "tails", "weights": {"rgb": 1.0}, "verdict": {"residual": 1.0, "kl": 3.0}, "verdict_area": 0.1},
}


SIZE = (30, 41)


def fitted_calibration(with_region: bool, **settings) -> Calibration:
    """Fitted on 12 images of `SIZE`, with a region of interest if asked for."""
    calibration = Calibration(**settings)
    if with_region:
        region = torch.zeros(SIZE, dtype=torch.bool)
        region[3:25, 6:] = True
        calibration.set_roi(region)
    fit(calibration, random_maps(calibration, 12, SIZE))
    return calibration


@pytest.mark.parametrize("with_region", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_arrays_are_fused_as_tensors_are(name, with_region):
    calibration = fitted_calibration(with_region, smoothing_sigma=1.5, timesteps=(20, 201), **SETTINGS[name])
    rng = np.random.default_rng(5)
    raw = {one: rng.gamma(2, size=SIZE).astype(np.float32) * 20 for one in calibration.term_map_names}
    tensors = {one: smooth_map(torch.from_numpy(values)[None], 1.5) for one, values in raw.items()}
    expected = calibration.anomaly_maps(tensors)
    score = calibration.scores(tensors, expected)
    level = StoredCalibration(calibration.score_config, stored_scores(calibration), calibration.region).outside_level
    region = (calibration.region, calibration.config.roi_share, level)
    actual, actual_score = fuse(raw, calibration.score_config, stored_statistics(calibration)[0], *region)
    np.testing.assert_allclose(actual, expected[0].numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actual_score, score[0].numpy(), rtol=1e-4, atol=1e-4)


def test_decades_of_arrays_are_those_of_tensors():
    rng = np.random.default_rng(0)
    tail = Tail(np.sort(rng.normal(size=(1, 9))), np.array([0.7]), np.array([0.2]))
    values = np.concatenate([rng.normal(0, 3, size=5000), tail.knots[0], [1e6, -1e6]])
    expected = decades(torch.from_numpy(values)[None, None], Tail(*map(torch.from_numpy, tail)))[0, 0]
    np.testing.assert_allclose(decades_of_array(values, tail), expected.numpy(), rtol=1e-9, atol=1e-9)
