"""DiffADPipeline with a region of interest: nothing outside it counts."""

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline, ImageError
from PIL import Image
from tiny_pipeline import SIZE, smooth_images, tiled_pipeline, tiny_pipeline


def region(size: tuple[int, int]) -> np.ndarray:
    """The right half."""
    inside = np.zeros(size, dtype=bool)
    inside[:, size[1] // 2 :] = True
    return inside


def with_spot(image: Image.Image, column: int) -> Image.Image:
    pixels = np.array(image)
    pixels[12:20, column : column + 8] = np.where(np.indices((8, 8)).sum(0) % 2, 0, 255)[..., None]
    return Image.fromarray(pixels)


def test_only_the_region_of_interest_counts(tmp_path):
    images = smooth_images(4, seed=8)
    pipe = tiny_pipeline(smoothing_sigma=0.5, weights={"mahalanobis": 1.0})
    pipe.calibrate(images, roi=region((SIZE, SIZE)))
    inside, outside = pipe([with_spot(images[0], 20), with_spot(images[0], 2)], false_alarm_rate=0.5).image_scores
    assert inside > outside + 1
    output = pipe(with_spot(images[0], 2), false_alarm_rate=0.5, return_term_maps=True)
    term_map, anomaly_map = output.term_maps[0]["mahalanobis"], output.anomaly_maps[0]
    assert output.image_scores[0] == term_map[:, 16:].max() < term_map[:, :16].max()
    np.testing.assert_array_equal(anomaly_map[:, 16:], term_map[:, 16:])
    assert (anomaly_map[:, :16] == 0).all() and not output.masks[0][:, :16].any()

    term_maps = pipe(images, false_alarm_rate=0.5, return_term_maps=True).term_maps
    maxima = [of_image["mahalanobis"][:, 16:].max() for of_image in term_maps]
    assert all(np.isclose(maxima, threshold, rtol=1e-4, atol=1e-4).any() for threshold in pipe.calibration.calibration_maxima)
    of_statistics = [
        p["mahalanobis"][:, 16:]
        for p in term_maps
        if not np.isclose(pipe.calibration.calibration_maxima, p["mahalanobis"][:, 16:].max(), rtol=1e-4).any()
    ]
    assert len(of_statistics) == 1 and of_statistics[0].mean() == pytest.approx(0, abs=1e-3)
    assert of_statistics[0].std() == pytest.approx(1, abs=1e-3)

    pipe.save_pretrained(tmp_path)
    loaded = DiffADPipeline.from_pretrained(tmp_path)
    assert loaded(with_spot(images[0], 2), false_alarm_rate=0.5).image_scores[0] == output.image_scores[0]


def test_nothing_outside_the_region_is_called_defective_where_thresholds_are_negative():
    pipe = tiny_pipeline(smoothing_sigma=0.5, weights={"mahalanobis": 1.0})
    calibration = pipe.calibrate(smooth_images(4, seed=8), roi=region((SIZE, SIZE)))
    shift = calibration.calibration_scores.max() + 3
    calibration.calibration_scores -= shift
    calibration.calibration_maxima -= shift
    output = pipe(with_spot(smooth_images(1, seed=9)[0], 20), false_alarm_rate=0.5)
    threshold = output.pixel_thresholds[0]
    assert threshold < 0 and output.masks[0].any()
    np.testing.assert_array_equal(output.masks[0], output.anomaly_maps[0] > threshold)
    changed = pipe.reconstruct(with_spot(smooth_images(1, seed=9)[0], 20), false_alarm_rate=0.5, margin=0, timesteps=(50,))
    assert changed.difference_maps[0][:, 16:].any() and not changed.difference_maps[0][:, :4].any()


def test_region_is_kept_replaced_and_removed_by_recalibration(tmp_path):
    images = smooth_images(3, seed=8)
    pipe = tiny_pipeline(smoothing_sigma=0.5, weights={"mahalanobis": 1.0})
    whole = pipe.calibrate(images).calibration_scores
    Image.fromarray(region((100, 100))).save(tmp_path / "roi.png")
    from_file = pipe.calibrate(images, roi=tmp_path / "roi.png").calibration_scores
    assert not torch.equal(whole, from_file)
    assert torch.equal(pipe.calibrate(images).calibration_scores, from_file)
    assert torch.equal(pipe.calibrate(images, roi=region((SIZE, SIZE))).calibration_scores, from_file)
    assert torch.equal(pipe.calibrate(images, roi=np.ones((5, 5), dtype=bool)).calibration_scores, whole)


def test_region_of_tiled_images_is_at_their_size():
    pipe, images = tiled_pipeline(), smooth_images(3, seed=4, size=(96, 64))
    pipe.calibrate(images, roi=region((640, 960)), short_side=2 * SIZE)
    assert pipe.calibration.config.roi_size == (64, 96)
    output = pipe(images[0], false_alarm_rate=0.5)
    assert not output.masks[0][:, :47].any() and (output.anomaly_maps[0][:, :47] == 0).all()


@pytest.mark.parametrize("roi", [np.zeros((8, 8), dtype=bool), np.ones((8, 8)), np.ones((8, 8, 3), dtype=bool)])
def test_unusable_region_is_refused_and_changes_nothing(roi):
    pipe = tiny_pipeline()
    before = pipe.calibration
    with pytest.raises(ImageError, match="region"):
        pipe.calibrate(smooth_images(3, seed=8), roi=roi)
    assert pipe.calibration is before
