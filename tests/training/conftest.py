"""Every training in a test is its process's first, on one thread; one small data set and one trained model for all."""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.state import AcceleratorState
from diffad_training import train
from tiny_training import COMPLETE, choose_maps_quickly, save_images, tiny_config, use_one_thread


class Run(NamedTuple):
    """A finished run: its settings, folder and what it printed."""

    config: train.TrainingConfig
    folder: Path
    printed: str


@pytest.fixture(autouse=True)
def as_a_new_process(monkeypatch):
    use_one_thread(lambda *args: monkeypatch.setattr(*args, raising=False))
    choose_maps_quickly(monkeypatch.setattr)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def good_images(tmp_path_factory) -> Path:
    return save_images(tmp_path_factory.mktemp("data") / "good")


@pytest.fixture(scope="session")
def trained(good_images, tmp_path_factory) -> Run:
    """30 steps, of which checkpoints 20 and 30 are kept. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    settings = {"max_train_steps": 30, "validation_steps": 10, "checkpointing_steps": 10, "keep_checkpoints": True}
    config = tiny_config(good_images, folder, **settings, report_to="tensorboard", augmentations=["hflip"], **COMPLETE)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        use_one_thread(lambda *args: patch.setattr(*args, raising=False))
        choose_maps_quickly(patch.setattr)
        AcceleratorState._reset_state(reset_partial_state=True)
        train.main(config)
    return Run(config, folder, printed.getvalue())
