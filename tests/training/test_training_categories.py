"""One model of several categories is trained: drawn from equally often, split apart, and each with its own statistics."""

import numpy as np
import pytest
from diffad import DiffADPipeline
from diffad.data import DataError, Sample, category_samples, split_held_out
from diffad_training import train
from diffad_training.dataset import BalancedSampler, CachedDataset, balanced_statistics, build_cache
from tiny_pipeline import category_images, tiny_extractor
from tiny_training import assert_equal_models, tiny_config


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
    build_cache(samples, tiny_extractor(), (16, 16), tmp_path, short_side=24)
    cached = CachedDataset(tmp_path)
    assert cached.categories.tolist() == [samples[i].category for i in cached.owners] and len(cached) > len(samples)


def test_cache_holds_the_label_and_notices_another_order(categories, tmp_path):
    for order in (["nut", "bolt"], ["bolt", "nut"]):
        samples = category_samples(categories, order)
        build_cache(samples, tiny_extractor(), (32, 32), tmp_path)
        cached = CachedDataset(tmp_path)
        assert [cached[i]["categories"].item() for i in range(18)] == [sample.category for sample in samples]


def test_run_trains_one_model_of_two_categories_and_resumes(categories, tmp_path):
    settings = {"categories": ["nut", "bolt"], "max_train_steps": 10, "checkpointing_steps": 8, "checkpoints_total_limit": 3}
    train.main(tiny_config(categories, tmp_path / "whole", keep_checkpoints=True, **settings))
    pipe = DiffADPipeline.from_pretrained(tmp_path / "whole")
    assert pipe.category_names == ["nut", "bolt"] and pipe.unet.config.num_class_embeds == 2
    assert pipe.calibration.images_per_category == [2, 1]
    images = [*category_images(2, 9, 0), *category_images(2, 9, 1)]
    output = pipe(images, false_alarm_rate=0.5)
    assert output.categories == ["nut", "nut", "bolt", "bolt"] and np.isfinite(output.image_scores).all()

    checkpoint = str(tmp_path / "whole" / "checkpoint-8")  # in the second epoch
    train.main(tiny_config(categories, tmp_path / "resumed", resume_from_checkpoint=checkpoint, **settings))
    assert_equal_models(tmp_path / "resumed", tmp_path / "whole")
