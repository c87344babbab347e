"""held_out.py: the names beside a model say which images it holds out, and not the rule that once chose them."""

import json

import pytest
from data_folders import mvtec_ad
from diffad.data import DataError, category_samples, training_samples
from diffad_training.good_images import held_out_samples


def write_model(folder, held_out, **settings):
    folder.mkdir()
    (folder / "training_config.json").write_text(json.dumps({"categories": [], "held_out_fraction": 0.5, **settings}))
    (folder / "held_out.json").write_text(json.dumps({"held_out": held_out}))
    return folder


def test_of_one_category(tmp_path):
    data = mvtec_ad(tmp_path / "nut")
    names = [sample.name for sample in training_samples(data)]
    for i, seed in enumerate((0, 7)):
        model = write_model(tmp_path / f"model{i}", names[1:3], data=str(data), seed=seed)
        assert [sample.name for sample in held_out_samples(model)] == names[1:3]
    moved = write_model(tmp_path / "moved", names[:2], data="elsewhere", seed=3)
    assert [sample.name for sample in held_out_samples(moved, str(data))] == names[:2]


def test_of_several_categories(tmp_path):
    for category in ("nut", "bolt"):
        mvtec_ad(tmp_path / category)
    samples = category_samples(tmp_path, ["nut", "bolt"])
    names = [samples[0].name, samples[-1].name]
    model = write_model(tmp_path / "model", names, data=str(tmp_path), categories=["nut", "bolt"])
    assert [(sample.name, sample.category) for sample in held_out_samples(model)] == list(zip(names, (0, 1)))


def test_other_data_and_models_without_a_record_are_refused(tmp_path):
    data = mvtec_ad(tmp_path / "nut")
    model = write_model(tmp_path / "model", ["train/good/999.png"], data=str(data))
    with pytest.raises(DataError, match="1 of 1 images that the model holds out are not in the data: train/good/999.png"):
        held_out_samples(model)
    (model / "held_out.json").unlink()
    with pytest.raises(DataError, match="held_out.json"):
        held_out_samples(model)
    with pytest.raises(DataError, match="training_config.json"):
        held_out_samples(tmp_path)
