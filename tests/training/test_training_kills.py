"""Trainings that are killed at random moments go on and end with the weights of an uninterrupted one, bit for bit."""

import dataclasses
import os
import random
import shutil
import signal
import sys
import threading
from functools import partial

import pytest
from diffad import DiffADPipeline
from diffad_training import train
from diffad_training.checkpoints import find_checkpoint
from diffad_training.run_folder import RunFolder
from tiny_training import assert_equal_models, start, tiny_config

WRITING_EVENTS = 40  # file operations of one checkpoint, about
SHORT, LONG = (1, 1), (30, 30)  # kills at any moment, and inside the writing of a checkpoint


def train_and_die(config: train.TrainingConfig, seconds: float, operation: int | None) -> None:
    """Trains in a process that kills itself.

    Args:
        operation: number of the file operation in checkpoints from which on the seconds count; None is the start.
    """
    seen = 0
    kill = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    kill.daemon = True

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event.startswith(("open", "os.", "shutil.")) and any("checkpoint-" in str(argument) for argument in arguments):
            seen += 1
            if seen == operation:
                kill.start() if seconds else os.kill(os.getpid(), signal.SIGKILL)

    if operation is None:
        kill.start()
    else:
        sys.addaudithook(hook)
    train.main(config)


def kill_and_resume(config: train.TrainingConfig, reference, kills: tuple[int, int], seed: int) -> dict[str, int]:
    """Trains again and again under kills until there were so many; every finished model must equal the reference.

    Returns:
        Counts of kills at any moment and in checkpoints, of finished runs, and of those that were never killed.
    """
    draw = random.Random(seed)
    folder = RunFolder(train.Path(config.output_dir))
    counts = {"anywhere": 0, "in a checkpoint": 0, "finished": 0, "from a checkpoint": 0}
    kills_of_run = 0
    while counts["anywhere"] < kills[0] or counts["in a checkpoint"] < kills[1]:
        in_checkpoint = counts["anywhere"] >= kills[0] or (counts["in a checkpoint"] < kills[1] and draw.random() < 0.5)
        if in_checkpoint:
            plan = {"seconds": draw.choice([0, draw.uniform(0, 0.01)]), "operation": draw.randint(1, 3 * WRITING_EVENTS)}
        else:
            plan = {"seconds": draw.uniform(0.1, 4), "operation": None}
        (process,) = start(config, act=partial(train_and_die, **plan))
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode:
            counts["in a checkpoint" if in_checkpoint else "anywhere"] += 1
            kills_of_run += 1
            counts["from a checkpoint"] += find_checkpoint("latest", folder)[0] is not None
        else:
            assert_equal_models(folder.path, reference)
            counts["finished"] += 1
            shutil.rmtree(folder.path)
            kills_of_run = 0
    if kills_of_run:
        (process,) = start(config)
        process.join(120)
        assert process.exitcode == 0
        assert_equal_models(folder.path, reference)
        assert DiffADPipeline.from_pretrained(folder.path).calibration.is_fitted
        left = {path.name for path in folder.path.iterdir()}
        assert not [name for name in left if name.startswith((".", "checkpoint", "cache"))]
    return counts


@pytest.fixture(scope="module")
def reference(good_images, tmp_path_factory):
    config = tiny_config(good_images, tmp_path_factory.mktemp("kills") / "reference", **RUN)
    (process,) = start(config)
    process.join(120)
    assert process.exitcode == 0
    return config


RUN = {"max_train_steps": 8, "checkpointing_steps": 2, "checkpoints_total_limit": 2, "augmentations": ["hflip"]}


@pytest.mark.parametrize("kills", [SHORT, pytest.param(LONG, marks=pytest.mark.long)], ids=["short", "long"])
def test_killed_trainings_end_with_the_weights_of_an_uninterrupted_one(kills, reference, tmp_path):
    config = dataclasses.replace(reference, output_dir=str(tmp_path / "killed"), resume_from_checkpoint="latest")
    counts = kill_and_resume(config, train.Path(reference.output_dir), kills, seed=0)
    print(counts)
    assert (counts["anywhere"], counts["in a checkpoint"]) == kills
