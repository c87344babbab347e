"""DiffADPipeline on large images, which are scored in tiles."""

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad.imaging.maps import smooth_map
from diffad.imaging.tensors import cut, to_model_range
from diffad.scoring.tiling import add_tiles, blend_weights, tile_corners
from tiny_pipeline import SIZE, smooth_images, tiled_pipeline, tiny_pipeline


@pytest.fixture(scope="module")
def good_images():
    return smooth_images(3, seed=4, size=(96, 64)) + smooth_images(1, seed=5, size=(64, 64))


@pytest.fixture(scope="module")
def pipe(good_images):
    pipe = tiled_pipeline()
    pipe.calibrate(good_images, short_side=2 * SIZE)
    return pipe


def test_map_is_made_of_the_maps_of_tiles_and_keeps_the_aspect(pipe):
    image = smooth_images(1, seed=6, size=(96, 64))[0]  # as large as it is scored: 64 pixels high, 96 wide
    output = pipe(image, return_term_maps=True, false_alarm_rate=0.25)
    assert output.anomaly_maps[0].shape == output.masks[0].shape == (64, 96)
    x = to_model_range(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    corners = tile_corners((64, 96), (SIZE, SIZE), 0.25)
    expected = torch.zeros(64, 96)
    with torch.no_grad():
        distances = pipe.gaussian(pipe.feature_extractor(cut(x, corners, (SIZE, SIZE)))).sqrt()
        distances = torch.nn.functional.interpolate(distances[:, None], size=(SIZE, SIZE), mode="bilinear")[:, 0]
    add_tiles(expected, distances, torch.from_numpy(blend_weights((64, 96), corners, (SIZE, SIZE))), corners)
    expected = pipe.calibration.standardize({"mahalanobis": smooth_map(expected[None], 1.0)})["mahalanobis"][0]
    np.testing.assert_allclose(output.term_maps[0]["mahalanobis"], expected, rtol=1e-3, atol=1e-3)
    assert output.image_scores[0] == pytest.approx(output.anomaly_maps[0].max(), rel=1e-5)


def test_passes_are_no_larger_than_the_batch_and_scores_do_not_depend_on_it(pipe, good_images):
    sizes = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    scores = [pipe(good_images, batch_size=batch_size, false_alarm_rate=0.5).image_scores for batch_size in (1, 3, 8)]
    handle.remove()
    assert {size[-2:] for size in sizes} == {(SIZE, SIZE)}
    assert max(size[0] for size in sizes) == 8 and min(size[0] for size in sizes) == 1
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-4, atol=1e-4)


def test_an_image_of_one_tile_scores_as_without_tiling(good_images):
    pipe = tiled_pipeline()
    small = smooth_images(4, seed=7)
    pipe.calibrate(small)
    expected = pipe(small, false_alarm_rate=0.5).image_scores
    pipe.calibrate(small, short_side=SIZE)
    np.testing.assert_allclose(pipe(small, false_alarm_rate=0.5).image_scores, expected, rtol=1e-4, atol=1e-4)


def test_thresholds_are_of_whole_images_and_survive_saving(pipe, good_images, tmp_path):
    scores = pipe(good_images, false_alarm_rate=0.5).image_scores
    assert len(pipe.calibration.calibration_scores) == 3
    for calibration_score in pipe.calibration.calibration_scores.numpy():
        assert np.isclose(scores, calibration_score, rtol=1e-4, atol=1e-4).any()
    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded(good_images, false_alarm_rate=0.5).image_scores, scores)


def test_tiles_that_the_model_does_not_fit_are_refused(good_images, pipe):
    with pytest.raises(ValueError, match="at least the model's resolution 32, got 16"):
        pipe.calibrate(good_images, short_side=16)
    with pytest.raises(ValueError, match="shared_gaussian"):
        tiny_pipeline().calibrate(good_images, short_side=64)
