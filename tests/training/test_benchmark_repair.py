"""The figures of the repair benchmark mean what they say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.metrics
import torch
from diffad.data import Sample
from diffad_training.benchmarks import peers, repair_judges, repair_methods
from diffad_training.benchmarks import repair as benchmark_repair
from diffad_training.benchmarks.repair import UNetPasses, compare, measure, psnr, run
from diffad_training.benchmarks.repair_judges import patchcore_judge
from diffad_training.benchmarks.repair_methods import PASTED, MethodResult
from diffad_training.benchmarks.repair_tables import SUMMARY, by_size, update_tables
from diffad_training.benchmarks.synthetic_defects import defect_set
from markdown_tables import figures, row_of, table_rows
from PIL import Image
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
    figures = measure(pipe, MethodResult, defects, "nothing")
    for key, higher_is_better in benchmark_repair.COLUMNS.items():
        median, worst = figures[key]["median"], figures[key]["worst_decile"]
        assert worst <= median if higher_is_better else worst >= median
    assert figures["unet_passes"] == 0 and figures["confident"] is None
    assert figures["changed_of_defect"]["median"] == 0


def test_the_share_of_confident_repairs_is_measured(pipe, defects):
    said = iter([True, False, True, True])
    assert measure(pipe, lambda image: MethodResult(image, next(said)), defects, "")["confident"] == 0.75


def test_all_methods_run_and_their_tables_are_rendered(pipe, tmp_path, monkeypatch):
    data = tmp_path / "nut"
    for folder, seed in (("train/good", 1), ("test/good", 2), ("test/hole", 3)):
        (data / folder).mkdir(parents=True)
        for i, image in enumerate(smooth_images(3, seed)):
            image.save(data / folder / f"{i}.png")
    fast = {name: {"preset": "default"} for name in repair_methods.SETTINGS} | {
        "Algorithm 1": {"preset": "paper", "num_steps": 5}
    }
    monkeypatch.setattr(repair_methods, "SETTINGS", fast)
    judges = {"the model": lambda images: pipe(images).is_defective, "nobody": lambda images: np.zeros(len(images), bool)}
    with torch.no_grad():
        result = run(pipe, data, judges, synthetic=2, real=2, slow=1, seed=1, shares=(0.02, 0.3))
    assert list(result["synthetic"]) == ["0.02", "0.3"]
    for methods in result["synthetic"].values():
        assert list(methods) == ["nothing", "fill", *fast]  # the model keeps no good images to paste
        assert methods["Algorithm 1"]["unet_passes"] == 1 and methods["Algorithm 1"]["confident"] is None
        assert methods["diffad"]["confident"] is not None
    assert result["slow_images"] == 1
    assert result["real"]["defective"]["judges"]["nobody"]["normal_before"] == 1
    record = {"category": "nut", "seed": 1, "date": "2026-01-01", "machine": "a machine", **result}
    (tmp_path / "repair.jsonl").write_text(json.dumps(record) + "\n")
    kinds = ["", ":psnr", ":features", ":outside", ":real"]
    blank = "".join(f"<!-- repair{kind} -->\nold\n<!-- /repair -->\n" for kind in kinds)
    (tmp_path / "README.md").write_text(blank)
    update_tables(tmp_path / "README.md", tmp_path / "repair.jsonl")
    text = (tmp_path / "README.md").read_text()
    assert "Algorithm 1 repaired the first 1 of each." in text
    assert "old" not in text and figures(row_of(text, "30 %", "Algorithm 1"))["UNet passes"] == [1]
    assert any({"nobody: before", "nobody: after"} <= row.keys() for row in table_rows(text))


def test_a_row_for_each_category_and_size_and_nothing_where_a_method_is_missing():
    medians = {name: {"psnr_inside": {"median": 20.0 + i}} for i, name in enumerate(SUMMARY) if name != PASTED}
    table = by_size([{"category": "nut", "synthetic": {"0.005": medians, "0.35": medians}}], "psnr_inside", 1)
    assert [(row["category"], row["defect"]) for row in table_rows(table)] == [("nut", "0.5 %"), ("nut", "35 %")]
    expected = {SUMMARY[name].replace("**", ""): [20.0 + i] for i, name in enumerate(SUMMARY) if name != PASTED}
    for size, share in (("0.5 %", 0.5), ("35 %", 35)):
        assert figures(row_of(table, "nut", size)) == {"defect": [share], **expected}


def test_methods_can_be_named_and_samples_are_measured_only_then(pipe):
    assert not set(repair_methods.SAMPLES) & set(repair_methods.methods_of(pipe))
    assert list(repair_methods.methods_of(pipe, ["samples", "fill"])) == ["samples", "fill"]
    with pytest.raises(KeyError, match="paste"):
        repair_methods.methods_of(pipe, ["paste"])


def test_patchcore_calls_at_most_the_stated_share_of_good_images_defective(tmp_path, monkeypatch):
    """The threshold is that of the held-out images' scores, which a stub gives as brightness."""
    names = [f"train/good/{i:02}.png" for i in range(40)]
    images = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(40)]
    samples = [Sample(name, lambda image=image: image) for name, image in zip(names, images)]
    fitted = []
    monkeypatch.setattr(repair_judges, "held_out_samples", lambda model: samples[:20])
    monkeypatch.setattr(repair_judges, "training_samples", lambda data: samples)
    monkeypatch.setattr(peers, "fit", lambda peer, samples, seed, candidates: (fitted.extend(samples) or brightness_model, {}))
    judge = patchcore_judge(tmp_path, tmp_path, seed=0)
    assert [sample.name for sample in fitted] == names[20:]
    np.testing.assert_array_equal(judge([images[i] for i in (0, 19, 20, 39)]), [False, False, True, True])


def brightness_model(images: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(pred_score=images.mean())
