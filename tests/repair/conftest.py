"""A calibrated pipeline to repair with."""

import pytest
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(20, seed=7), smoothing_sigma=1.0)
    return pipe
