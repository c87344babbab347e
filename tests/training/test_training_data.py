"""dataset.py and good_images.py: what is cached, drawn and augmented, and the names that decide what is held out."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffad.data import DataError, training_samples
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.system.disk_space import DiskFullError
from diffad_training.dataset import CachedDataset, augment, build_cache, channel_statistics
from diffad_training.good_images import good_samples, group_names, read_held_out, save_held_out, split_samples
from tiny_pipeline import tiny_extractor
from tiny_training import tiny_config


@pytest.fixture(scope="module")
def extractor():
    return tiny_extractor()


def test_cache_holds_what_would_be_computed_and_notices_changes(good_images, extractor, tmp_path):
    samples = training_samples(good_images)
    build_cache(samples, extractor, (32, 32), tmp_path / "cache")
    cached = CachedDataset(tmp_path / "cache")
    assert len(cached) == 13
    pixels = resize_rgb(samples[5].read(), (32, 32))
    np.testing.assert_array_equal(cached[5]["images"], pixels)
    with torch.no_grad():
        expected = extractor.raw_features(to_model_range(torch.from_numpy(pixels.copy()))[None])[0]
    torch.testing.assert_close(cached[5]["features"].float(), expected, rtol=2e-3, atol=2e-3)
    written = (tmp_path / "cache" / "images.npy").stat().st_mtime_ns
    build_cache(samples, extractor, (32, 32), tmp_path / "cache")
    assert (tmp_path / "cache" / "images.npy").stat().st_mtime_ns == written
    build_cache(samples[:4], extractor, (32, 32), tmp_path / "cache")
    assert len(CachedDataset(tmp_path / "cache")) == 4


def test_digest_is_that_of_the_images_wherever_they_lie(good_images, extractor, tmp_path):
    def digest(samples, name):
        build_cache(samples, extractor, (32, 32), tmp_path / name)
        return CachedDataset(tmp_path / name).digest

    samples = training_samples(good_images)[:3]
    assert digest(samples, "a") == digest(samples, "b")
    assert len({digest(samples, "a"), digest(samples[:2], "c"), digest(samples[::-1], "d")}) == 3


@pytest.mark.parametrize("text", ["", "[]", '{"samples": "of an earlier release"}'])
def test_damaged_cache_is_made_anew(text, good_images, extractor, tmp_path):
    samples = training_samples(good_images)[:2]
    build_cache(samples, extractor, (32, 32), tmp_path)
    digest = CachedDataset(tmp_path).digest
    (tmp_path / "cache.json").write_text(text)
    build_cache(samples, extractor, (32, 32), tmp_path)
    assert CachedDataset(tmp_path).digest == digest


def test_full_disk_is_one_line_before_anything_is_decoded(good_images, extractor, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DiskFullError, match=r"images.npy: takes 39.1 KiB, and .* are free on its disk") as error:
        build_cache(training_samples(good_images), extractor, (32, 32), tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "cache.json").exists()


def test_channel_statistics_agree_with_numpy():
    features = np.random.default_rng(0).normal(3, 2, size=(7, 5, 4, 4)).astype(np.float16)
    mean, std = channel_statistics(features, [0, 2, 5])
    chosen = features[[0, 2, 5]].astype(np.float64)
    np.testing.assert_allclose(mean, chosen.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, chosen.std(axis=(0, 2, 3)), rtol=1e-6)


def test_augmentations_are_drawn_per_image_and_keep_pixels():
    torch.manual_seed(0)
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(64, 1, 4, 4)
    turned = augment(images, ["rot90"])
    assert {tuple(image.flatten().tolist()) for image in turned} == {
        tuple(torch.rot90(images[0, 0], k).flatten().tolist()) for k in range(4)
    }
    assert len(augment(images, ["hflip", "vflip"]).flatten(1).unique(dim=0)) == 4
    assert torch.equal(augment(images, []), images)


def test_recorded_names_decide_and_not_the_rule(good_images, tmp_path):
    config = tiny_config(good_images, tmp_path)
    samples = good_samples(config)
    training, held_out = split_samples(samples, config)
    assert len(held_out) == 3 and len(training) == 10
    save_held_out(held_out, tmp_path)
    names = read_held_out(tmp_path)
    other_seed = tiny_config(good_images, tmp_path, seed=5, held_out_fraction=0.5)
    assert split_samples(samples, other_seed, names) == (training, held_out)
    assert split_samples(samples, other_seed)[1] != held_out
    with pytest.raises(DataError, match=f"1 of 3 images that the model holds out are not in the data: {names[0]}"):
        split_samples([sample for sample in samples if sample.name != names[0]], config, names)


def test_thresholds_count_groups_and_too_few_are_refused_before_training(good_images, tmp_path):
    config = tiny_config(good_images, tmp_path)
    samples = good_samples(config)
    assert group_names(samples) is None

    def grouped(count: int) -> list:
        return [replace(sample, group=f"part {i % count}") for i, sample in enumerate(samples)]

    training, held_out = split_samples(grouped(6), config)
    assert not {sample.group for sample in training} & {sample.group for sample in held_out}
    assert group_names(held_out) == [sample.group for sample in held_out] and len(set(group_names(held_out))) > 1
    with pytest.raises(DataError, match="held-out images .* are all of group 'part .'; thresholds count groups"):
        split_samples(grouped(2), config)
    assert group_names([samples[0], replace(samples[1], group="a")]) == [samples[0].name, "a"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"held_out": "a"}', '{"held_out": [1]}'])
def test_damaged_record_of_names_is_one_line(text, tmp_path):
    with pytest.raises(DataError, match="held_out.json: no such file; .* train .* anew"):
        read_held_out(tmp_path)
    (tmp_path / "held_out.json").write_text(text)
    with pytest.raises(DataError, match="held_out.json: damaged"):
        read_held_out(tmp_path)
    assert text != json.dumps({"held_out": []})
