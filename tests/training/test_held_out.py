"""held_out.py: the held-out images are recovered from a model's settings."""

import json

import pytest
from data_folders import mvtec_ad
from diffad.data import DataError, category_samples, split_held_out, training_samples
from diffad_training.benchmarks.held_out import held_out_samples


def write_settings(folder, **settings):
    folder.mkdir()
    settings = {"categories": [], "held_out_fraction": 0.5, "seed": 3, **settings}
    (folder / "training_config.json").write_text(json.dumps(settings))
    return folder


def names(samples):
    return [(sample.name, sample.category) for sample in samples]


def test_of_one_category(tmp_path):
    data = mvtec_ad(tmp_path / "nut")
    expected = split_held_out(training_samples(data), 0.5, 3)[1]
    assert len(expected) == 2
    assert names(held_out_samples(write_settings(tmp_path / "model", data=str(data)))) == names(expected)
    moved = write_settings(tmp_path / "moved", data="elsewhere")
    assert names(held_out_samples(moved, str(data))) == names(expected)


def test_of_several_categories(tmp_path):
    for category in ("nut", "bolt"):
        mvtec_ad(tmp_path / category)
    expected = split_held_out(category_samples(tmp_path, ["nut", "bolt"]), 0.5, 3)[1]
    assert {sample.category for sample in expected} == {0, 1}
    model = write_settings(tmp_path / "model", data=str(tmp_path), categories=["nut", "bolt"])
    assert names(held_out_samples(model)) == names(expected)


def test_without_settings(tmp_path):
    with pytest.raises(DataError, match="training_config.json"):
        held_out_samples(tmp_path)
