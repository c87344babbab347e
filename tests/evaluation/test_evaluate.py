"""Evaluation of a model: metrics of every score, files written, and refusal of bad data before scoring."""

import csv
import json
import os
import re

import numpy as np
import pytest
from diffad import DiffADPipeline, detection_metrics, localization_metrics
from diffad.data import DataError, evaluation_samples
from diffad.evaluation import scored_samples
from diffad.evaluation.evaluate import evaluate_model
from diffad.system.text import original_text
from PIL import Image
from sklearn.metrics import f1_score
from tiny_pipeline import category_images, save_test_images, smooth_images, tiled_pipeline, tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(19, seed=4))
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Three good images, and three with a black and white block and its mask."""
    return save_test_images(tmp_path / "part", defective=3)


def run(model, data, output_dir, **options):
    results = evaluate_model(DiffADPipeline.from_pretrained(model), data, output_dir, batch_size=4, **options)
    assert json.loads((output_dir / "metrics.json").read_text()) == json.loads(json.dumps(results))
    return results


def test_planted_defects_are_found_and_every_score_has_its_row(model, data, tmp_path):
    results = run(model, data, tmp_path / "out")
    scores = results["scores"]
    assert scores["ensemble"]["image_auroc"] == 1.0 and scores["ensemble"]["pixel_auroc"] > 0.9
    assert scores["ensemble"] == pytest.approx(scores["mahalanobis"])
    assert {"paper (Eq. 11)", "kl", "rgb", "feature", "mahalanobis", "kl@20", "feature@401"} < set(scores)
    assert all(0 <= value <= 1 for metrics in scores.values() for value in metrics.values())
    assert results["images"] == {"good": 3, "defective": 3} and results["map_size"] == "256x256"
    assert results["operating_point"]["detection_rate"] == 1.0
    assert (results["model"], results["data"]) == (str(model), "part")
    assert "| ensemble |" in (tmp_path / "out" / "metrics.md").read_text()
    assert np.asarray(Image.open(tmp_path / "out" / "sheet.png").convert("L")).std() > 10
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<dt>Masks</dt><dd>pixel F1 " in report
    assert report.count('<article class="row') == 6
    called_defective = re.findall(r'class="badge[^"]*">(?:found|false alarm)<', report)
    assert report.count(">repaired<") == len(called_defective) >= 3


def test_metrics_are_those_of_the_returned_maps(model, data, tmp_path):
    results = run(model, data, tmp_path / "out", report=False)
    assert not (tmp_path / "out" / "report.html").exists()
    pipe = DiffADPipeline.from_pretrained(model)
    samples = evaluation_samples(data)
    output = pipe([sample.read for sample in samples], map_size=(256, 256), return_term_maps=True)
    labels = np.array([sample.is_defective for sample in samples])
    masks = scored_samples.read_truth(samples, (256, 256))
    expected = {
        **detection_metrics(output.image_scores, labels),
        **localization_metrics(np.stack(output.anomaly_maps), masks),
    }
    assert results["scores"]["ensemble"] == pytest.approx(expected, rel=1e-5)
    point, seg_f1 = results["operating_point"], f1_score(masks.ravel(), np.stack(output.masks).ravel())
    assert 0 < point["seg_f1"] == pytest.approx(seg_f1) and np.stack(output.masks).any()
    assert point["seg_f1_share"] == pytest.approx(seg_f1 / expected["pixel_f1_max"])
    assert f"pixel F1 {seg_f1:.1%}" in (tmp_path / "out" / "metrics.md").read_text()
    paper = np.stack([(p["kl@20"] + p["kl@201"] + p["kl@401"]) / 6 for p in output.term_maps])
    paper += np.stack([(p["feature@20"] + p["feature@201"] + p["feature@401"]) / 6 for p in output.term_maps])
    expected = localization_metrics(paper, masks)
    assert results["scores"]["paper (Eq. 11)"]["aupro_30"] == pytest.approx(expected["aupro_30"], rel=1e-4)
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [sample.name for sample in samples]
    np.testing.assert_allclose([float(row["score"]) for row in rows], output.image_scores, rtol=1e-4)


def test_single_terms_count_in_the_region_of_interest_alone(data, tmp_path):
    """A model of one term: its ensemble and the term are the same, with a region that cuts the defects, too."""
    inside = np.zeros((32, 32), dtype=bool)
    inside[:, 14:] = True
    pipe = tiny_pipeline(weights={"residual": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(19, seed=4), roi=inside)
    pipe.save_pretrained(tmp_path / "model")
    scores = run(tmp_path / "model", data, tmp_path / "out", report=False, map_size=(32, 32))["scores"]
    assert scores["residual"] == pytest.approx(scores["ensemble"], rel=1e-5)
    assert scores["residual"] != pytest.approx(scores["mahalanobis"], rel=1e-5)


def test_models_of_tiles_are_measured_at_the_size_at_which_they_score(tmp_path, monkeypatch):
    """A defect of three pixels in an image of 96x64 counts as such, and not as what 256x256 or less make of it."""
    for kind in ("test/good", "test/dot", "ground_truth/dot"):
        (tmp_path / kind).mkdir(parents=True)
    for i, image in enumerate(smooth_images(2, seed=20, size=(96, 64))):
        image.save(tmp_path / f"test/good/{i}.png")
        pixels, mask = np.array(image), np.zeros((64, 96), dtype=np.uint8)
        pixels[30, 40:43], mask[30, 40:43] = 255, 255
        Image.fromarray(pixels).save(tmp_path / f"test/dot/{i}.png")
        Image.fromarray(mask).save(tmp_path / f"ground_truth/dot/{i}.png")
    pipe = tiled_pipeline(weights={"mahalanobis": 1.0})
    pipe.calibrate(smooth_images(3, seed=4, size=(96, 64)), short_side=64)
    pipe.save_pretrained(tmp_path / "model")

    results = run(tmp_path / "model", tmp_path, tmp_path / "tiles")
    assert results["map_size"] == "64x96" and "64x96 (height x width)" in (tmp_path / "tiles" / "metrics.md").read_text()
    assert "compared at 64x96" in (tmp_path / "tiles" / "report.html").read_text(encoding="utf-8")
    samples = evaluation_samples(tmp_path)
    truth = scored_samples.read_truth(samples, (64, 96))
    assert truth.sum() == 6
    maps = np.stack(DiffADPipeline.from_pretrained(tmp_path / "model")([s.read for s in samples]).anomaly_maps)
    assert results["scores"]["ensemble"]["pixel_ap"] == pytest.approx(localization_metrics(maps, truth)["pixel_ap"], rel=1e-4)

    monkeypatch.setattr(scored_samples, "MAX_MAP_PIXELS", 4 * 32 * 48 + 100)
    assert scored_samples.default_map_size(samples, 64) == (32, 48)
    assert scored_samples.default_map_size(samples, None) == (256, 256)


def test_without_masks_there_are_image_metrics_only(model, data, tmp_path):
    for path in (data / "ground_truth").rglob("*.png"):
        path.unlink()
    (data / "ground_truth" / "block").rmdir()
    (data / "ground_truth").rmdir()
    results = run(model, data, tmp_path / "out")
    assert set(results["scores"]["ensemble"]) == {"image_auroc", "image_ap", "image_f1_max"}
    assert "seg_f1" not in results["operating_point"]
    assert "pixel F1" not in (tmp_path / "out" / "metrics.md").read_text()


def test_masks_without_a_defect_stop_before_scoring(model, data, tmp_path):
    for path in (data / "ground_truth/block").iterdir():
        Image.new("L", (32, 32)).save(path)
    with pytest.raises(DataError, match="3 of 3 masks of defective images are blank"):
        run(model, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_are_neither_run_by_spreadsheets_nor_end_the_run(model, data, tmp_path):
    (data / "test/block").rename(data / "test/=1+1")
    (data / "ground_truth/block").rename(data / "ground_truth/=1+1")
    (data / "test/good/0.png").rename(os.fsdecode(os.fsencode(data / "test/good") + b"/\xff $\\frac$.png"))
    run(model, data, tmp_path / "out", report=False)
    with (tmp_path / "out/scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not [cell for row in rows for cell in row.values() if cell.startswith("=")]
    assert sum(original_text(row["defect"]) == "=1+1" for row in rows) == 3
    assert [row["image"] for row in rows if "\N{REPLACEMENT CHARACTER}" in row["image"]]


def test_missing_mask_stops_before_scoring(model, data, tmp_path):
    (data / "ground_truth" / "block" / "1_mask.png").unlink()
    with pytest.raises(DataError, match="1.png: no mask"):
        run(model, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_model_of_several_categories_is_evaluated_on_one(data, tmp_path):
    pipe = tiny_pipeline(("nut", "bolt"), weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    good_images = [*category_images(9, 4, 0), *category_images(19, 4, 1)]
    pipe.calibrate(good_images, categories=["nut"] * 9 + ["bolt"] * 19)
    pipe.save_pretrained(tmp_path / "model")
    given = run(tmp_path / "model", data, tmp_path / "given", report=False, category="nut")
    assert given["scores"]["ensemble"]["image_auroc"] == 1.0
    assert given["class_labels"] == {"given": True, "images": {"nut": 6}}
    assert given["operating_point"]["held_out_normals"] == 8
    recognised = run(tmp_path / "model", data, tmp_path / "recognised", report=False)
    assert recognised["class_labels"]["given"] is False and sum(recognised["class_labels"]["images"].values()) == 6
    other = run(tmp_path / "model", data, tmp_path / "other", report=False, category="bolt")
    assert other["operating_point"]["held_out_normals"] == 18 and other["scores"] != given["scores"]
    with pytest.raises(ValueError, match="'screw' is none of nut, bolt"):
        run(tmp_path / "model", data, tmp_path / "wrong", category="screw")
