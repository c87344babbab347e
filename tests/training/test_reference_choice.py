"""The images that a model keeps for repair."""

from itertools import combinations

import numpy as np
import pytest
from diffad.models import reference_images
from diffad_training import reference_choice
from diffad_training.reference_choice import choose_references, covering


def radius(points: np.ndarray, chosen: list[int]) -> float:
    return np.linalg.norm(points[:, None] - points[chosen][None], axis=2).min(axis=1).max()


def test_chosen_points_cover_all_within_twice_the_least_radius():
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(9, 2))
        chosen = covering(points, 3)
        assert len(set(chosen)) == 3
        assert radius(points, chosen) <= 2 * min(radius(points, list(one)) for one in combinations(range(9), 3)) + 1e-12
    assert sorted(covering(points, 20)) == list(range(9))


@pytest.fixture
def good_parts():
    """Images `(14, 3, 32, 32)`, the indices of 12 to choose from, and their features `(12, 4)` and categories: two products."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(14, 3, 32, 32), dtype=np.uint8)
    return images, np.arange(1, 13), rng.normal(size=(12, 4)), np.repeat([0, 1], 6)


def test_every_category_has_as_many_images_of_its_own(good_parts):
    references = choose_references(*good_parts, count=6)
    images, indices, _, categories = good_parts
    assert references.config.categories == (0, 0, 0, 1, 1, 1) and not references.config.turns
    for image, category in zip(references.images.numpy(), references.config.categories):
        (place,) = np.flatnonzero((images[indices] == image).all(axis=(1, 2, 3)))
        assert categories[place] == category


def test_no_more_than_the_bytes_allow_and_none_where_none_are_wanted(good_parts, monkeypatch):
    assert choose_references(*good_parts, count=0) is None
    monkeypatch.setattr(reference_choice, "MOST_BYTES", 5 * 3 * 32 * 32)
    assert len(choose_references(*good_parts, count=48).images) == 4
    assert reference_images.MOST_BYTES == 10_000_000


def test_parts_that_turn_need_fewer(good_parts, monkeypatch):
    monkeypatch.setattr(reference_choice, "turning_helps", lambda images, sources: True)
    references = choose_references(*good_parts, count=6)
    assert references.config.turns and references.config.categories == (0, 1)


def test_grey_images_are_kept_with_one_channel(good_parts):
    images, *of_each = good_parts
    grey = np.repeat(images[:, :1], 3, axis=1)
    references = choose_references(grey, *of_each, count=6)
    assert references.images.shape == (6, 1, 32, 32) and references.of_category(1).shape == (3, 3, 32, 32)
