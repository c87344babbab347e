"""Synthetic defects: local, visible, repeatable, and nothing else changed."""

import numpy as np
import pytest
from diffad_training.benchmarks.synthetic_defects import KINDS, MIN_CONTRAST, add_defect
from tiny_pipeline import smooth_images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_defect_is_visible_local_and_repeatable(kind, seed):
    image, donor = (np.asarray(image) for image in smooth_images(2, seed=seed, size=(256, 256)))
    defective, mask = add_defect(image, kind, np.random.default_rng(seed), donor)
    again, _ = add_defect(image, kind, np.random.default_rng(seed), donor)
    assert np.array_equal(defective, again)
    assert np.array_equal((defective != image).any(axis=2), mask)
    assert 0 < mask.mean() < 0.15
    assert np.sqrt(np.square(defective[mask].astype(float) - image[mask]).mean()) >= MIN_CONTRAST


def test_image_of_one_colour_has_no_swapped_piece():
    flat = np.full((64, 64, 3), 90, dtype=np.uint8)
    with pytest.raises(RuntimeError, match="no visible swapped defect"):
        add_defect(flat, "swapped", np.random.default_rng(0))
