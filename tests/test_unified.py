"""One model of several categories: predictions, reports and training."""

import json

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad.data import DataError, Sample, category_samples, split_held_out
from diffad.evaluation.report import report_from_predictions
from diffad.hub.push import export_repo
from diffad.jobs.predict import PredictionSettings, predict_folder
from diffad.jobs.summary import summarize_model
from diffad.jobs.table import read_rows
from diffad_training import train
from diffad_training.config import parse_config
from diffad_training.dataset import BalancedSampler, CachedDataset, balanced_statistics, build_cache
from test_training import tiny_config, unet_weights
from tiny_pipeline import category_images, tiny_extractor, tiny_pipeline

NAMES = ("nut", "bolt", "washer")
LABELS = [0, 1, 2] * 2


def mixed_images(seed: int = 30) -> list:
    return [category_images(1, seed + i, label)[0] for i, label in enumerate(LABELS)]


@pytest.fixture(scope="module")
def pipe() -> DiffADPipeline:
    pipe = tiny_pipeline(NAMES, smoothing_sigma=1.0)
    normals = [image for label in range(3) for image in category_images(19 + label, 4, label)]
    pipe.calibrate(normals, categories=[name for i, name in enumerate(NAMES) for _ in range(19 + i)])
    return pipe


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
    assert summary["categories"] == "nut, bolt, washer" and summary["held-out normals"] == "18, 18, 19"
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


def test_epoch_holds_every_class_equally_often_and_every_image_of_the_largest():
    groups = [list(range(60)), [60, 61, 62], list(range(63, 70))]
    sampler = BalancedSampler(groups, seed=1)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 70
    for group in groups:
        counts = np.bincount(drawn, minlength=70)[group]
        assert counts.sum() in (23, 24) and counts.max() - counts.min() <= 1
    assert sorted(index >= 60 for index in drawn[:3]) == [False, True, True]  # balanced from the first batch on
    assert list(sampler) == drawn
    sampler.set_epoch(1)
    assert list(sampler) != drawn


def test_statistics_weigh_classes_and_not_images():
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, size=(13, 5, 4, 4)).astype(np.float16)
    features[10:] *= 4
    mean, std = balanced_statistics(features, [range(10), range(10, 13)])
    parts = [features[:10].astype(np.float64), features[10:].astype(np.float64)]
    np.testing.assert_allclose(mean, np.mean([part.mean(axis=(0, 2, 3)) for part in parts], axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(np.mean([part.var(axis=(0, 2, 3)) for part in parts], axis=0)), rtol=1e-6)


@pytest.fixture(scope="module")
def categories(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for label, (name, count) in enumerate({"nut": 13, "bolt": 5, "bolt/defects": 0}.items()):
        (root / name / "train" / "good").mkdir(parents=True)
        for i, image in enumerate(category_images(count, 0, label)):
            image.save(root / name / "train" / "good" / f"{i:03d}.png")
    return root


def test_every_category_is_split_as_it_would_be_alone(categories):
    training, held_out = split_held_out(category_samples(categories, ["nut", "bolt"]), 0.25, seed=3)
    assert len({sample.name for sample in training + held_out}) == 18
    for label, name in enumerate(("nut", "bolt")):
        alone = split_held_out(category_samples(categories, [name]), 0.25, seed=3)
        for part, expected in zip((training, held_out), alone):
            assert [sample.name for sample in part if sample.category == label] == [sample.name for sample in expected]
    with pytest.raises(DataError, match="only 3 good images .nut"):
        split_held_out(category_samples(categories, ["bolt", "nut"])[:8], 0.25, seed=3)


def test_validation_images_of_one_category_leave_the_others_their_draw():
    own = [Sample(f"a/{i}", lambda: None, held_out=i < 2) for i in range(6)]
    others = [Sample(f"b/{i}", lambda: None, category=1) for i in range(8)]
    held_out = [sample.name for sample in split_held_out(own + others, 0.5, seed=0)[1]]
    assert held_out[:2] == ["a/0", "a/1"] and [name[0] for name in held_out[2:]] == ["b"] * 4


def test_cache_holds_the_label_of_every_tile(categories, tmp_path):
    samples = category_samples(categories, ["nut", "bolt"])
    build_cache(samples, tiny_extractor(), 16, tmp_path, short_side=24)
    cached = CachedDataset(tmp_path)
    assert cached.categories.tolist() == [samples[i].category for i in cached.owners] and len(cached) > len(samples)


def test_cache_holds_the_label_and_notices_another_order(categories, tmp_path):
    for order in (["nut", "bolt"], ["bolt", "nut"]):
        samples = category_samples(categories, order)
        build_cache(samples, tiny_extractor(), 32, tmp_path)
        cached = CachedDataset(tmp_path)
        assert [cached[i]["class_labels"].item() for i in range(18)] == [sample.category for sample in samples]


def test_run_trains_one_model_of_two_categories_and_resumes(categories, tmp_path):
    settings = {"categories": ["nut", "bolt"], "unet": {**tiny_config("", "").unet}, "max_train_steps": 10}
    train.main(tiny_config(categories, tmp_path / "whole", checkpointing_steps=8, **settings))
    pipe = DiffADPipeline.from_pretrained(tmp_path / "whole")
    assert pipe.category_names == ["nut", "bolt"] and pipe.unet.config.num_class_embeds == 2
    assert pipe.calibration.images_per_category == [2, 1]
    images = [*category_images(2, 9, 0), *category_images(2, 9, 1)]
    output = pipe(images, false_alarm_rate=0.5)
    assert output.categories == ["nut", "nut", "bolt", "bolt"] and np.isfinite(output.image_scores).all()

    checkpoint = str(tmp_path / "whole" / "checkpoint-8")  # in the second epoch
    train.main(tiny_config(categories, tmp_path / "resumed", resume_from_checkpoint=checkpoint, **settings))
    expected, actual = unet_weights(tmp_path / "whole"), unet_weights(tmp_path / "resumed")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("categories", ["[nut]", "[nut, nut]"])
def test_fewer_than_two_categories_are_refused(categories, capsys):
    with pytest.raises(SystemExit):
        parse_config(["--data", "x", "--categories", categories])
    assert "at least two different folders" in capsys.readouterr().err
