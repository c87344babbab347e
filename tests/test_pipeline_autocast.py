"""DiffADPipeline inside a caller's autocast: it runs, and what is promised in float32 stays float32."""

import numpy as np
import pytest
import torch
from tiny_pipeline import SIZE, category_images, smooth_images, tiled_pipeline, tiny_pipeline

DTYPES = [torch.bfloat16, torch.float16]
ALL_TERMS = {"kl": 0.1, "rgb": 0.2, "feature": 0.3, "residual": 0.2, "mahalanobis": 0.2}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [{"smoothing_sigma": 1.0}, {"smoothing_sigma": 0.0}, {"per_image": True}])
def test_scores_calibration_and_maps_inside_autocast(dtype, settings):
    images = smooth_images(6, seed=4)
    pipe = tiny_pipeline(weights=ALL_TERMS, **settings)
    pipe.calibrate(images)
    expected = pipe(images, return_term_maps=True, false_alarm_rate=0.5)
    with torch.autocast("cpu", dtype):
        output = pipe(images, return_term_maps=True, false_alarm_rate=0.5)
        tensors = pipe(images, return_term_maps=True, false_alarm_rate=0.5, output_type="pt")
        scores = pipe.calibrate(images).calibration_scores
    assert scores.dtype == torch.float32 and output.image_scores.dtype == np.float32
    for i in range(len(images)):
        assert output.anomaly_maps[i].dtype == np.float32 and tensors.anomaly_maps[i].dtype == torch.float32
        assert {m.dtype for m in output.term_maps[i].values()} == {np.dtype(np.float32)}
        # What needs no UNet is the same bit for bit; what it says is only nearly so.
        np.testing.assert_array_equal(output.term_maps[i]["mahalanobis"], expected.term_maps[i]["mahalanobis"])
        for name, term_map in expected.term_maps[i].items():
            assert np.abs(output.term_maps[i][name] - term_map).max() < 0.1 * max(1, np.abs(term_map).max())
    np.testing.assert_allclose(output.image_scores, expected.image_scores, rtol=0.05, atol=0.1)
    assert {v.dtype for v in pipe.calibration.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_score_without_the_unet_is_the_same_bit_for_bit(dtype):
    images = smooth_images(6, seed=4)
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0})
    pipe.calibrate(images)
    expected = pipe(images, false_alarm_rate=0.5)
    with torch.autocast("cpu", dtype):
        pipe.calibrate(images)
        output = pipe(images, false_alarm_rate=0.5)
    np.testing.assert_array_equal(output.image_scores, expected.image_scores)
    np.testing.assert_array_equal(output.anomaly_maps, expected.anomaly_maps)
    np.testing.assert_array_equal(output.p_values, expected.p_values)


def test_tiles_and_categories_inside_autocast():
    names = ("nut", "bolt")
    pipe = tiled_pipeline(names)
    images = [*category_images(3, 4, 0, size=(2 * SIZE, 2 * SIZE)), *category_images(3, 4, 1, size=(2 * SIZE, 2 * SIZE))]
    with torch.autocast("cpu", torch.bfloat16):
        pipe.calibrate(images, categories=["nut"] * 3 + ["bolt"] * 3, short_side=2 * SIZE)
        output = pipe(images, false_alarm_rate=0.5)
    assert output.categories == ["nut"] * 3 + ["bolt"] * 3
    assert output.image_scores.dtype == np.float32 and np.isfinite(output.image_scores).all()


@torch.no_grad()
def test_features_and_predictions_are_float32_inside_autocast():
    pipe = tiny_pipeline()
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    expected = pipe.feature_extractor(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert pipe.unet(images, 20).sample.dtype == torch.bfloat16  # the UNet does as the caller says
        prediction = pipe.scorer.denoiser(images, torch.tensor(20))
        features, residuals = pipe.feature_extractor(images), pipe.scorer.feature_residuals(images)
    assert {values.dtype for values in prediction} == {torch.float32}
    assert features.dtype == residuals.dtype == torch.float32 and torch.equal(features, expected)
