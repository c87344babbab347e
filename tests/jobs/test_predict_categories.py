"""Predictions, reports and repositories of one model of several categories."""

import json

import numpy as np
import pytest
from diffad import DiffADPipeline
from diffad.evaluation.evaluate import evaluate_model
from diffad.evaluation.report import report_from_predictions
from diffad.hub.push import export_repo
from diffad.jobs.model_summary import summarize_model
from diffad.jobs.predict import PredictionSettings, predict_folder
from diffad.jobs.table import read_rows
from PIL import Image
from three_products import NAMES, mixed_images, three_products
from tiny_pipeline import category_images, save_test_images, tiny_pipeline
from unknown_products import stripes, two_products


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    return three_products()


def test_predictions_name_the_category_and_reports_take_one(pipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(mixed_images()[:3]):
        image.save(folder / f"{i}.png")
    predict_folder(pipe, folder, tmp_path / "all.jsonl", PredictionSettings(0.1, overlays=tmp_path / "overlays"))
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["category"] for row in rows] == list(NAMES)
    with pytest.raises(ValueError, match="bolt, nut, washer; report on each category apart"):
        report_from_predictions(pipe, rows, folder, 0.1)
    report = report_from_predictions(pipe, rows[1:2], folder, 0.1)
    assert report.image_threshold == pipe.calibration.image_threshold(0.1, 1) and len(report.calibration_scores) == 18
    assert report.rows[0].pictures().input.size == (32, 32)
    # A rate that this category supports, and another one does not.
    assert report_from_predictions(pipe, rows[2:], folder, 0.05).false_alarm_rate == 0.05

    predict_folder(pipe, folder, tmp_path / "bolt.jsonl", PredictionSettings(0.1, category="bolt"))
    rows = [json.loads(line) for line in (tmp_path / "bolt.jsonl").read_text().splitlines()]
    expected = pipe(mixed_images()[:3], categories="bolt", false_alarm_rate=0.1).image_scores
    np.testing.assert_allclose([row["score"] for row in rows], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="'screw' is none of"):
        predict_folder(pipe, folder, tmp_path / "screw.jsonl", PredictionSettings(0.1, category="screw"))


def test_summary_and_repository_name_the_categories(pipe, tmp_path):
    summary = summarize_model(pipe)
    assert summary["categories"] == "nut, bolt, washer" and summary["calibration images"] == "18, 18, 19"
    threshold = f"{pipe.calibration.image_threshold(0.05, 2):.4g}"
    assert summary["threshold at 5%, washer"].startswith(threshold) and summary["threshold at 5%, nut"].startswith("none")
    export_repo(pipe, tmp_path / "repository")
    card = (tmp_path / "repository" / "README.md").read_text()
    assert "One model of nut, bolt, washer" in card and "55 calibration images (nut 18, bolt 18, washer 19)" in card
    assert DiffADPipeline.from_pretrained(tmp_path / "repository").category_names == list(NAMES)


def test_table_holds_the_rate_that_each_category_supports(tmp_path):
    pipe = tiny_pipeline(("nut", "bolt"), smoothing_sigma=1.0)
    pipe.calibrate([*category_images(4, 4, 0), *category_images(25, 4, 1)], categories=["nut"] * 4 + ["bolt"] * 25)
    for label, name in enumerate(("nut", "bolt")):
        category_images(1, 9, label)[0].save(tmp_path / f"{name}.png")
    with pytest.warns(UserWarning, match="3 calibration images of category 0"):
        predict_folder(pipe, tmp_path, tmp_path / "table.jsonl")
    rates = {row["category"]: row["false_alarm_rate"] for row in read_rows(tmp_path / "table.jsonl")}
    assert rates == {"nut": 0.25, "bolt": 0.05}


# Training


def test_parts_of_an_unknown_product_are_labelled_so(tmp_path):
    """In the table, in the summary's count and in an evaluation; a report of one category leaves them to it."""
    pipe = two_products()
    data = save_test_images(tmp_path / "data", defective=2)
    images = [*data.glob("test/good/*.png")]
    for i, image in enumerate(stripes(2)):
        Image.fromarray(image).save(data / f"test/good/stripes{i}.png")
    summary = predict_folder(pipe, data / "test/good", tmp_path / "table.csv", PredictionSettings(0.1))
    rows = {row["path"]: row for row in read_rows(tmp_path / "table.csv")}
    assert [(row["label"], row["category"]) for name, row in rows.items() if name.startswith("stripes")] == [
        ("unknown", "")
    ] * 2
    assert {row["category"] for name, row in rows.items() if not name.startswith("stripes")} == {"bright"}
    assert (summary.images, summary.unknown) == (len(images) + 2, 2)
    assert report_from_predictions(pipe, rows.values(), data / "test/good", 0.1).rows[-1].called_defective
    results = evaluate_model(pipe, data, tmp_path / "evaluation", false_alarm_rate=0.1, map_size=(32, 32), report=False)
    assert results["class_labels"]["images"]["unknown"] >= 2
