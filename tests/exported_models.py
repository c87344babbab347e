"""Tiny models and their exports, made once."""

import os
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from diffad import DiffADPipeline
from diffad.export.folder import export_pipeline
from diffad.runtime import Detector
from diffad.scoring.presets import DEFAULT
from filelock import FileLock
from pyramid_pipeline import FURTHER, pyramid_pipeline
from three_products import three_products
from tiny_pipeline import category_images, tiled_pipeline

WEIGHTS = {"rgb": 1.0, "residual": 1.0, "detail": 2.0, "neighbors": 1.0, "feature_residual": 1.0, "pixel_residual": 1.0}


class Exported(NamedTuple):
    pipe: DiffADPipeline
    folder: object

    def detector(self, **options) -> Detector:
        return Detector(self.folder, threads=1, **options)


def exported(pipe: DiffADPipeline, name: str, tmp_path_factory, *options) -> Exported:
    """The pipeline's export, which the first worker that asks for it writes for all: tracing a graph takes many seconds."""
    pytest.importorskip("onnxscript")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"exported-{name}"
    with FileLock(folder.with_suffix(".lock")), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not folder.is_dir():
            export_pipeline(pipe, folder, *options)
    return Exported(pipe, folder)


@pytest.fixture(scope="session")
def whole_images(tmp_path_factory) -> Exported:
    """Terms of all scales, a region of interest, term maps among the outputs."""
    pipe = pyramid_pipeline()
    settings = {**DEFAULT, "scales": FURTHER, "weights": WEIGHTS}
    region = np.zeros((32, 32), dtype=bool)
    region[4:, :28] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.calibrate(category_images(31, 4, 0), roi=region, **settings, smoothing_sigma=1.0)
    return exported(pipe, "whole_images", tmp_path_factory, "onnx", True)


@pytest.fixture(scope="session")
def openvino(whole_images, tmp_path_factory) -> Exported:
    pytest.importorskip("openvino")
    return exported(whole_images.pipe, "openvino", tmp_path_factory, "openvino")


@pytest.fixture(scope="session")
def of_categories(tmp_path_factory) -> Exported:
    return exported(three_products(timesteps=(201,)), "of_categories", tmp_path_factory)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory) -> Exported:
    """Two categories in tiles, with the default score's fusion and two timesteps, each of which is traced."""
    names = ("nut", "bolt")
    pipe = tiled_pipeline(names)
    good = [image for label in range(2) for image in category_images(24, 4, label, (96, 64))]
    settings = {"short_side": 48, "fusion": "tails", "weights": {"rgb": 1.0, "residual": 1.0, "mahalanobis": 0.5}}
    settings |= {"verdict": {"residual": 1.0, "mahalanobis": 2.0}, "verdict_area": 0.01, "timesteps": (20, 201)}
    pipe.calibrate(good, categories=[name for name in names for _ in range(24)], **settings)
    return exported(pipe, "tiles", tmp_path_factory)
