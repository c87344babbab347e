"""DiffADPipeline moved, cast, offloaded, or with a part replaced: the scorer is that of the present parts."""

import numpy as np
import torch
from PIL import Image
from tiny_pipeline import SIZE, smooth_images, tiny_pipeline


def right_half() -> np.ndarray:
    inside = np.zeros((SIZE, SIZE), dtype=bool)
    inside[:, SIZE // 2 :] = True
    return inside


def spotted_image() -> Image.Image:
    pixels = np.array(smooth_images(1, seed=9)[0])
    pixels[12:20, 20:28] = np.where(np.indices((8, 8)).sum(0) % 2, 0, 255)[..., None]
    return Image.fromarray(pixels)


def test_calibration_stays_where_the_maps_are_when_models_are_offloaded(monkeypatch):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0})
    pipe.calibrate(smooth_images(4, seed=8), roi=right_half())
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.empty_device_cache", lambda device: None)
    pipe.enable_model_cpu_offload(device="meta")  # stands for a GPU: it, too, refuses tensors of the CPU
    calibration, maps = pipe.calibration, torch.zeros(2, SIZE, SIZE, device=pipe._execution_device)
    assert maps.is_meta and pipe.unet.device.type == pipe.feature_extractor.device.type == "cpu"
    assert all(buffer.is_meta for buffer in calibration.buffers()) and calibration.roi.is_meta
    assert calibration.standardize({"mahalanobis": maps})["mahalanobis"].is_meta


def test_offloaded_models_score_calibrate_and_repair_the_same():
    images, spotted = smooth_images(4, seed=8), spotted_image()
    pipe = tiny_pipeline(smoothing_sigma=0.5)

    def everything():
        thresholds = pipe.calibrate(images, roi=right_half()).calibration_maxima
        score = pipe(spotted, false_alarm_rate=0.5).image_scores[0]
        repaired = pipe.reconstruct(spotted, false_alarm_rate=0.5, timesteps=(50,)).images[0]
        return thresholds.numpy(), score, np.asarray(repaired)

    expected = everything()
    pipe.enable_model_cpu_offload(device="cpu")  # the hooks of a GPU, which move models from the CPU to itself
    for actual, value in zip(everything(), expected, strict=True):
        np.testing.assert_array_equal(actual, value)
