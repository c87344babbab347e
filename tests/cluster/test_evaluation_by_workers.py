"""Metrics of images that several workers have scored are those of one process, to the last digit; without Ray."""

from functools import partial

import numpy as np
import pytest
from diffad import DiffADPipeline
from diffad.cluster.evaluation import MAPS, as_batch, as_table, score_by_workers
from diffad.data import DataError
from diffad.evaluation.evaluate import evaluate_model
from in_process import InProcess
from tiny_pipeline import save_test_images, smooth_images, tiny_pipeline

SIZE = (24, 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def parts(tmp_path):
    return save_test_images(tmp_path / "parts", defective=4)


def evaluate(model, parts, output, cluster=None):
    load = partial(DiffADPipeline.from_pretrained, model)
    score = {} if cluster is None else {"score": score_by_workers(cluster, load, str(parts))}
    return evaluate_model(load(), parts, output, batch_size=1, map_size=SIZE, report=False, **score)


def test_metrics_and_scores_are_those_of_one_process(model, parts, tmp_path):
    alone, gathered = evaluate(model, parts, tmp_path / "a"), evaluate(model, parts, tmp_path / "b", InProcess())
    assert {"pixel_auroc", "pixel_ap", "aupro_30", "image_auroc"} <= set(alone["scores"]["ensemble"])
    assert {**alone, "cost": None} == {**gathered, "cost": None}
    for name in ("scores.csv", "sheet.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_images_that_are_lost_end_the_evaluation(model, parts, tmp_path):
    with pytest.raises(RuntimeError, match="6 of 7 images were scored"):
        evaluate(model, parts, tmp_path / "a", InProcess(lambda tables: tables[:-1]))


def test_images_that_a_worker_does_not_see_are_named(model, parts, tmp_path):
    class Elsewhere(InProcess):
        def map(self, work, items, batch_size):
            (parts / "test/good/1.png").rename(tmp_path / "1.png")
            return super().map(work, items, batch_size)

    with pytest.raises(DataError, match="test/good/1.png is not in"):
        evaluate(model, parts, tmp_path / "a", Elsewhere())


def test_arrays_come_back_from_tables_as_they_were():
    rng = np.random.default_rng(0)
    batch = {
        "image_scores": rng.normal(size=3).astype(np.float32),
        "p_values": rng.random(3),
        "called_defective": np.array([True, False, True]),
        "maps": rng.normal(size=(3, *SIZE)).astype(np.float32),
        "called_masks": rng.random((3, *SIZE)) < 0.5,
        "term_maps": rng.normal(size=(3, 2, *SIZE)).astype(np.float32),
        "categories": np.array(["nut", "", "bolt"]),
    }
    assert set(MAPS) <= set(batch)
    back = as_batch(as_table(batch), SIZE)
    assert back.keys() == batch.keys()
    for name, expected in batch.items():
        np.testing.assert_array_equal(back[name], expected, strict=name != "categories", err_msg=name)
