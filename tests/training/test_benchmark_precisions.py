"""The comparison of precisions: images one by one, metrics of the package, agreement."""

import numpy as np
from diffad import detection_metrics, localization_metrics
from diffad.data import evaluation_samples
from diffad.evaluation.scored_samples import PROTOCOL_MAP_SIZE, read_truth
from diffad_training.benchmarks.precisions import Scored, common_categories, metrics, save_front, scored, table
from PIL import Image
from tiny_pipeline import save_test_images, smooth_images, tiny_pipeline


def test_images_are_scored_as_together_and_measured_by_the_packages_metrics(tmp_path):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(23, seed=4))
    samples = evaluation_samples(save_test_images(tmp_path / "parts", defective=3))
    found, together = scored(pipe, samples), pipe([sample.read for sample in samples], map_size=PROTOCOL_MAP_SIZE)
    np.testing.assert_allclose(found.scores, together.image_scores, rtol=1e-5)
    np.testing.assert_allclose(found.maps, np.stack(together.anomaly_maps), rtol=1e-3, atol=1e-3)
    assert found.seconds > 0
    truth, is_defective = read_truth(samples, PROTOCOL_MAP_SIZE), np.array([sample.is_defective for sample in samples])
    values = metrics(found, truth, samples)
    assert values["image AUROC"] == detection_metrics(found.scores, is_defective)["image_auroc"]
    assert values["AUPRO"] == localization_metrics(found.maps, truth)["aupro_30"]
    assert values["found"] == together.is_defective[is_defective].mean()
    none_found = Scored(found.scores, found.maps, np.zeros_like(found.labels), 0.25)
    assert metrics(none_found, truth, samples)["found"] == 0 and metrics(none_found, truth, samples)["images/s"] == 4


def test_the_table_and_the_picture_have_each_variant(tmp_path):
    values = {"image AUROC": 0.9876, "pixel AP": 0.5, "AUPRO": 1.0, "found": 0.75, "images/s": 12.345}
    exported = {**values, "labels that agree": 1.0, "largest difference of a score": 0.000123}
    compared = {"pipeline, fp32": values, "onnx, fp32": exported}
    lines = table([{"category": "screw", "profile": "fast", "compared": compared}]).splitlines()
    assert lines[2] == "| screw | fast | pipeline, fp32 | 98.8 | 50.0 | 100.0 | 75.0 |  |  | 12.3 |"
    assert lines[3] == "| screw | fast | onnx, fp32 | 98.8 | 50.0 | 100.0 | 75.0 | 100.0 | 0.0001 | 12.3 |"
    save_front([{"category": "screw", "profile": name, "compared": compared} for name in ("fast", "best")], tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").width > 1000


def test_the_picture_compares_profiles_on_the_categories_that_all_have():
    measured = {"fast": ("grid", "tile", "screw"), "balanced": ("screw", "grid"), "gaussian": ("grid", "screw", "x")}
    results = [{"category": c, "profile": name} for name, categories in measured.items() for c in categories]
    assert common_categories(results) == ["grid", "screw"]
