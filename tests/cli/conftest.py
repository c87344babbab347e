"""A tiny trained model on the disk, and test images for it."""

import shutil

import pytest
from accelerate.state import AcceleratorState
from tiny_pipeline import save_test_images, smooth_images, tiny_pipeline


@pytest.fixture(autouse=True)
def as_a_new_process():
    """A training in a test is its process's first, as on the command line."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved_model, tmp_path):
    """A copy that the test may change."""
    return shutil.copytree(saved_model, tmp_path / "model")


@pytest.fixture
def parts(tmp_path):
    """Test images: three good ones, two with a block, masks for these."""
    return save_test_images(tmp_path / "parts", defective=2)
