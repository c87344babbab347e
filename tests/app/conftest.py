"""A tiny model, and files to send."""

import pytest
from app_images import part
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.fixture(scope="session")
def pipe():
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(30, seed=5))
    return pipe


@pytest.fixture
def files(tmp_path):
    """Two good parts and a defective one as files, two files that are no images."""
    part(100).save(tmp_path / "good.png")
    part(101).save(tmp_path / "other.tif")
    part(102, defective=True).save(tmp_path / "hole.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "broken.zip").write_text("no archive")
    return tmp_path
