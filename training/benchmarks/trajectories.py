"""Draws the way from a defective image to its repair for several presets: the paper's own figure, beside ours.

    python training/benchmarks/trajectories.py --data_root DATA --model runs/part --cases anomaly/000 anomaly/003

A row for each case and preset: the input, images after a few steps at even distances, and the repair, each under its Eq. 12.
Algorithm 1 runs with fewer gradient steps than the paper's 500 (--num_steps), so that a case takes minutes. Writes
model_cards/trajectories.png.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.data import evaluation_samples
from diffad.imaging.drawing import evenly_spaced, filmstrip
from diffad_training.benchmarks.records import category_of
from PIL import Image

PICTURE = Path(__file__).parents[2] / "model_cards" / "trajectories.png"
FRAMES = 7
HEIGHT = 160  # pixels


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--model", type=Path, required=True, help="pipeline written by train.py")
    parser.add_argument("--cases", nargs="+", required=True, help="DEFECT/NAME of test images")
    parser.add_argument("--presets", nargs="+", default=["algorithm_1", "paper", "samples", "default"])
    parser.add_argument("--num_steps", type=int, default=100, help="gradient steps of Algorithm 1")
    options = parser.parse_args(arguments)
    pipe = DiffADPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    category = category_of(options.model)
    samples = evaluation_samples(options.data_root / category)
    rows = []
    for case in options.cases:
        (image,) = [sample.read() for sample in samples if case in sample.name]
        for preset in options.presets:
            settings = {"num_steps": options.num_steps} if preset in ("algorithm_1", "paper") else {}
            rows.append(trajectory(pipe, image, preset, settings))
            print(f"{case}, {preset}", flush=True)
    below_each_other(rows).save(PICTURE, optimize=True)


def trajectory(pipe: DiffADPipeline, image: Image.Image, preset: str, settings: dict) -> Image.Image:
    """A row of frames from an image to its repair."""
    output = pipe.reconstruct(image, preset, intermediate_steps="all", return_traces=True, **settings)
    (steps,), (trace,) = output.intermediates, output.traces  # the trace begins with the input
    picked = evenly_spaced(len(steps) - 1, FRAMES - 2)
    frames = [image, *(steps[i] for i in picked), output.images[0]]
    names = ["input", *(f"step {i + 1} of {len(steps)}" for i in picked), f"{preset}, repaired"]
    losses = [trace[0], *(trace[i + 1] for i in picked), trace[-1]]
    return filmstrip(frames, [f"{name}, Eq. 12: {loss:.0f}" for name, loss in zip(names, losses, strict=True)], HEIGHT)


def below_each_other(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width as one."""
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
