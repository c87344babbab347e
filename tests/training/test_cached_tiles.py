"""Training on tiles of large images: settings, and what the cache holds."""

import numpy as np
import pytest
from diffad.data import training_samples
from diffad.scoring.tiling import tile_corners
from diffad_training.config import TrainingConfig
from diffad_training.dataset import CachedDataset, build_cache
from tiny_pipeline import SIZE, smooth_images, tiny_extractor


def test_cache_holds_the_tiles_of_every_image(tmp_path):
    for i, size in enumerate([(96, 64), (64, 64)]):
        smooth_images(1, seed=i, size=size)[0].save(tmp_path / f"{i}.png")
    samples = training_samples(tmp_path)
    build_cache(samples, tiny_extractor(), (SIZE, SIZE), tmp_path / "cache", short_side=2 * SIZE, tile_overlap=0.25)
    cached = CachedDataset(tmp_path / "cache")
    corners = [tile_corners(size, (SIZE, SIZE), 0.25) for size in ((64, 96), (64, 64))]
    assert [cached.entries_of([i]) for i in (0, 1)] == [list(range(12)), list(range(12, 21))]
    assert [len(of_image) for of_image in corners] == [12, 9]
    for entry, (y, x) in enumerate(corners[0]):
        expected = np.asarray(samples[0].read())[y : y + SIZE, x : x + SIZE].transpose(2, 0, 1)
        np.testing.assert_array_equal(cached[entry]["images"], expected)
    assert cached.features.shape[0] == 21


def test_tiles_that_the_model_does_not_fit_are_refused():
    with pytest.raises(ValueError, match="shared_gaussian"):
        TrainingConfig(short_side=512)
    with pytest.raises(ValueError, match="at least the resolution 256"):
        TrainingConfig(short_side=128, shared_gaussian=True)
