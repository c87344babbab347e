"""Kills processes that save a model over another, and looks at what is left. Run as a script, with the number of kills first.

    PYTHONPATH=tests python tests/killed_saving.py 40 model FOLDER

Every child is killed (SIGKILL) at a random moment of its saving. What loads afterwards must be one of the two models, whole: by
its weights, its settings and its scores. Prints how many kills left which.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from diffad import DiffADPipeline
from diffad.jobs.recalibrate import save_calibration
from diffad.models.digest import model_digest
from diffad_training.kept_moments import KeptMoments
from diffad_training.update import save as save_update
from tiny_pipeline import smooth_images, tiny_pipeline


def main(kills: int, what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    pipes = [_pipeline(seed, same_networks=what != "model") for seed in (1, 2)]
    digests = [model_digest(pipe.components) for pipe in pipes]
    save = {"model": DiffADPipeline.save_pretrained, "calibration": save_calibration, "update": _save_update}[what]
    model = folder / "model"
    pipes[0].save_pretrained(model)
    started = time.perf_counter()
    save(pipes[1], model)
    duration = time.perf_counter() - started
    found, killed_while_saving = Counter(), 0
    draw = random.Random(0)
    now = digests.index(_load(model))
    while killed_while_saving < kills:
        child = os.fork()
        if child == 0:
            save(pipes[1 - now], model)
            os._exit(0)
        time.sleep(draw.uniform(0, 1.2) * duration)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed_while_saving += os.WIFSIGNALED(status)
        before, now = now, digests.index(_load(model))
        found["the other model" if now != before else "the former model"] += os.WIFSIGNALED(status)
    rest = [path.name for path in model.iterdir() if path.name.startswith(".")]
    print(f"{killed_while_saving} kills while saving the {what}: {dict(found)}; left behind: {rest}")
    shutil.rmtree(model)


def _pipeline(seed: int, same_networks: bool) -> DiffADPipeline:
    pipe = tiny_pipeline()
    if not same_networks:
        torch.nn.init.normal_(pipe.unet.conv_in.weight, std=0.1 * seed)
    pipe.calibrate(smooth_images(21, seed=seed))
    return pipe


def _save_update(pipe: DiffADPipeline, model: Path) -> None:
    save_update(pipe, model, KeptMoments({"coarse.0.mean": torch.zeros(100_000)}), ())


def _load(model: Path) -> str:
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe(smooth_images(1, seed=9))
    return model_digest(pipe.components)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
