"""The measurement behind the timestep of Algorithm 1."""

import json

import numpy as np
import pytest
import torch
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.repair.gradient_denoising import GradientDenoising, added_variance
from diffad_training.benchmarks import matched_timestep
from diffad_training.benchmarks.repair import psnr
from diffad_training.benchmarks.synthetic_defects import defect_set
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(24, seed=7), smoothing_sigma=1.0)
    return pipe


@pytest.fixture(scope="module")
def defects():
    return list(defect_set([np.asarray(image) for image in smooth_images(3, seed=9)], 3, seed=1))


def test_correlation_is_that_of_the_directions_between_the_images(pipe, defects):
    method = GradientDenoising(denoise_every=3, step_size=0.02)
    correlation = matched_timestep.direction_correlation(pipe, defects[0].defective, method)
    # The directions again, from the images that the callback sees.
    images = [to_model_range(torch.from_numpy(resize_rgb(Image.fromarray(defects[0].defective), pipe.image_size)[None]))]
    pipe.reconstruct(
        defects[0].defective,
        "gradient_descent",
        num_steps=3,
        callback_on_step_end=lambda pipe, step, start, tensors: images.append(tensors["images"]),
    )
    steps = [(after - (1 - 0.02**2) ** 0.5 * before).flatten().numpy() for before, after in zip(images, images[1:])]
    pairs = [np.corrcoef(steps[i], steps[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert correlation == pytest.approx(np.mean(pairs), abs=1e-4)


def test_figures_are_medians_over_the_defects_at_the_nearest_timestep(pipe, defects):
    method = GradientDenoising(num_steps=5)
    figures = matched_timestep.measure_timestep(pipe, defects, method, 33)  # the chain has 32 and 36
    output = pipe.reconstruct([defect.defective for defect in defects], method, batch_size=1, timestep=32, return_traces=True)
    images = [np.asarray(image) for image in output.images]
    inside = [psnr(image, defect.normal, defect.mask) for image, defect in zip(images, defects, strict=True)]
    assert figures["psnr_inside"] == pytest.approx(np.median(inside))
    assert figures["eq12_before"] == pytest.approx(np.median([trace[0] for trace in output.traces]), rel=1e-5)
    assert figures["eq12_after"] == pytest.approx(np.median([trace[-1] for trace in output.traces]), rel=1e-5)


def test_results_are_written_for_every_model(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "nut")
    good_images = [np.asarray(image) for image in smooth_images(3, seed=9)]
    monkeypatch.setattr(matched_timestep, "held_out_images", lambda model, size: good_images)
    monkeypatch.setattr(matched_timestep, "RESULTS", tmp_path / "results" / "matched_timestep.json")
    monkeypatch.setattr(matched_timestep, "TIMESTEPS", (20, 60))
    with torch.no_grad():
        matched_timestep.main(["--models", str(tmp_path / "nut"), "--images", "2", "--num_steps", "5"])
    result = json.loads((tmp_path / "results" / "matched_timestep.json").read_text())["nut"]
    assert result["added_variance"] == pytest.approx(added_variance(0.02, 5, result["correlation"]))
    assert list(result["timesteps"]) == ["20", "60"] and 0 <= result["matched_timestep"] < 100
