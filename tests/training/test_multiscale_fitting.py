"""Fitting of further scales: to all training images, each read once."""

import dataclasses

import numpy as np
import pytest
import torch
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad_training import accumulation, multiscale_fitting
from diffad_training.components import build_extractor, build_multiscale
from diffad_training.dataset import CachedDataset, build_cache
from diffad_training.good_images import good_samples
from tiny_training import tiny_config


@torch.no_grad()
def test_gaussians_are_of_all_training_images_and_each_is_read_once(good_images, tmp_path, monkeypatch):
    monkeypatch.setattr(multiscale_fitting, "STATISTICS_IMAGES", 4)
    monkeypatch.setattr(accumulation, "BATCH_SIZE", 3)
    config, opened = tiny_config(good_images, tmp_path / "model"), []
    extractor, samples = build_extractor(config), good_samples(config)
    build_cache(samples, extractor, config.image_size, tmp_path / "cache")
    counted = [
        dataclasses.replace(sample, read=lambda i=i, sample=sample: opened.append(i) or sample.read())
        for i, sample in enumerate(samples)
    ]
    groups = [[0, 2, 3, 5, 6, 8, 9], [1, 4, 7, 10]]
    categories = dataclasses.replace(config, categories=["nut", "bolt"])
    multiscale = build_multiscale(categories, extractor, 4, ("detail",))
    multiscale_fitting.fit_multiscale(multiscale, extractor, CachedDataset(tmp_path / "cache"), counted, groups)
    assert sorted(opened) == list(range(11))

    pixels = np.stack([resize_rgb(sample.read(), (64, 64)) for sample in samples])
    features = extractor.pyramid(to_model_range(torch.from_numpy(pixels)), multiscale.config.grid).fine
    standardized = multiscale.detail.standardized(features).flatten(2)  # (N, D, P)
    for category, group in enumerate(groups):
        expected = standardized[group].mean(dim=0).T  # (P, D)
        found = multiscale.detail.gaussian.mean.unflatten(0, (2, -1))[category]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "of_coarse", "of_detail"),  # share of the mean covariance; regularization, this share and whitening
    [
        (9, 60 / 69, (0.5, 3 / 12, None)),
        (32, 60 / 92, (0.5, 3 / 35, None)),
        (33, 60 / 93, (100 / 33, 0, 0.1)),
        (240, 0.2, (100 / 240, 0, 0.1)),
    ],
)
def test_the_mean_covariance_counts_the_more_the_fewer_images_there_are(good_images, tmp_path, images, of_coarse, of_detail):
    config = tiny_config(good_images, tmp_path / "model")
    multiscale = build_multiscale(config, build_extractor(config), images, ("coarse", "detail"))
    coarse, detail = multiscale.coarse.gaussian.config, multiscale.detail.gaussian.config
    assert (coarse.pooling, coarse.regularization, coarse.shared_whitening) == (of_coarse, 0.05, None)
    assert (detail.regularization, detail.pooling, detail.shared_whitening) == of_detail
    assert coarse.rank > detail.rank
