"""A model with its evaluation and new images, shared by the tests of the hub, which leave them as they are."""

import json
from pathlib import Path

import pytest
from diffad import DiffADPipeline
from diffad_training.config import TrainingConfig, save_config
from hub_models import write_evaluation
from tiny_pipeline import smooth_images, tiny_pipeline


@pytest.fixture(scope="session")
def pipe() -> DiffADPipeline:
    pipe = tiny_pipeline(smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(19, seed=4))
    return pipe


@pytest.fixture(scope="session")
def model(pipe, tmp_path_factory) -> Path:
    """A trained model's folder, with what training leaves there besides the pipeline."""
    folder = tmp_path_factory.mktemp("runs") / "part"
    pipe.save_pretrained(folder)
    config = TrainingConfig(data=str(folder.parent / "gear"), output_dir=str(folder), seed=7, max_train_steps=30)
    save_config(config, folder / "training_config.json")
    (folder / "training_summary.json").write_text(json.dumps({"seconds": 600.0, "peak_memory_mib": 2048.0, "steps": 30}))
    (folder / "checkpoint-30").mkdir()
    (folder / "checkpoint-30" / "optimizer.bin").write_bytes(b"pickled")
    return folder


@pytest.fixture(scope="session")
def evaluation(pipe, tmp_path_factory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("runs") / "part-evaluation", pipe)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{i}.png") for i in range(3)]
    for path, image in zip(paths, smooth_images(3, seed=9, size=(40, 36))):
        image.save(path)
    return paths
