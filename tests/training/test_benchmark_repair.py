"""The figures of the repair benchmark mean what they say."""

import json

import numpy as np
import pytest
import skimage.metrics
import torch
from diffad_training.benchmarks import repair as benchmark_repair
from diffad_training.benchmarks.repair import UNetPasses, compare, measure, psnr, run
from diffad_training.benchmarks.repair_tables import SUMMARY, summary, update_tables
from diffad_training.benchmarks.synthetic_defects import defect_set
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate(smooth_images(24, seed=7), smoothing_sigma=1.0)
    return pipe


@pytest.fixture(scope="module")
def defects():
    return list(defect_set([np.asarray(image) for image in smooth_images(3, seed=9)], 4, seed=1))


def test_psnr_agrees_with_scikit_image_and_looks_at_the_mask_only():
    rng = np.random.default_rng(0)
    image, reference = rng.integers(0, 256, size=(2, 16, 16, 3), dtype=np.uint8)
    everywhere = np.ones((16, 16), bool)
    expected = skimage.metrics.peak_signal_noise_ratio(reference, image)
    assert psnr(image, reference, everywhere) == pytest.approx(expected)
    half = everywhere.copy()
    half[8:] = False
    expected = skimage.metrics.peak_signal_noise_ratio(reference[:8], image[:8])
    assert psnr(image, reference, half) == pytest.approx(expected)
    assert psnr(image, image, half) == 99


def test_a_perfect_repair_and_none_at_all(pipe, defects):
    defect = defects[0]
    perfect, none = compare(pipe, defect, defect.normal), compare(pipe, defect, defect.defective)
    assert perfect["psnr_inside"] == 99 and perfect["ssim_inside"] == pytest.approx(1)
    assert perfect["feature_distance_inside"] == 0 < none["feature_distance_inside"]
    assert none["psnr_outside"] == 99 and none["ssim_outside"] == pytest.approx(1) and none["psnr_inside"] < 40


def test_unet_passes_are_counted_per_image(pipe):
    passes = UNetPasses(pipe)
    pipe(smooth_images(3, seed=1), batch_size=2)
    assert passes.stop() == 3 * len(pipe.calibration.config.timesteps)
    pipe(smooth_images(1, seed=1))
    assert passes.count == 9


def test_worst_decile_is_on_the_bad_side(pipe, defects):
    figures = measure(pipe, lambda image: image, defects, "nothing")
    for key, higher_is_better in benchmark_repair.COLUMNS.items():
        median, worst = figures[key]["median"], figures[key]["worst_decile"]
        assert worst <= median if higher_is_better else worst >= median
    assert figures["unet_passes"] == 0


def test_all_methods_run_and_their_tables_are_rendered(pipe, tmp_path, monkeypatch):
    data = tmp_path / "nut"
    for folder, seed in (("train/good", 1), ("test/good", 2), ("test/hole", 3)):
        (data / folder).mkdir(parents=True)
        for i, image in enumerate(smooth_images(3, seed)):
            image.save(data / folder / f"{i}.png")
    fast = {name: {"preset": "default"} for name in benchmark_repair.METHODS} | {
        "Algorithm 1": {"preset": "paper", "num_steps": 5}
    }
    monkeypatch.setattr(benchmark_repair, "METHODS", fast)
    with torch.no_grad():
        result = run(pipe, data, synthetic=3, real=2, seed=1)
    assert list(result["synthetic"]) == ["nothing", "fill", *fast]
    assert result["synthetic"]["Algorithm 1"]["unet_passes"] == 1
    record = {"category": "nut", "seed": 1, "date": "2026-01-01", "machine": "a machine", **result}
    (tmp_path / "repair.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "README.md").write_text("before\n<!-- repair -->\nold\n<!-- /repair -->\nafter\n")
    update_tables(tmp_path / "README.md", tmp_path / "repair.jsonl")
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text and "| Algorithm 1 |" in text and text.endswith("<!-- /repair -->\nafter\n")


def test_summary_has_a_row_per_category():
    measures = {"psnr_inside": {"median": 20.0}, "psnr_outside": {"median": 40.0}, "unet_passes": 9.6, "seconds": 1.25}
    record = {
        "category": "nut",
        "synthetic": {name: {**measures, "psnr_inside": {"median": 20.0 + i}} for i, name in enumerate(SUMMARY)},
        "real": {"defective": {"normal_before": 0.25, "normal_after": 0.75}, "good": {"changed_pixels": 0.0012}},
    }
    header, _, row = summary([record]).splitlines()
    assert header.count("|") == row.count("|")
    assert row == "| nut | 20.0 | 21.0 | 22.0 | 23.0 | 24.0 | 25.0 | 40.0 | 40.0 | 10 | 1.2 | 25 % | 75 % | 0.12 % |"
