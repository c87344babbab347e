"""The whole job on real images, offline: train on good solar cells, find the defective ones.

    python training/demo.py

Takes the 300x300 electroluminescence images of monocrystalline cells that the PyPI package `elpv-dataset` carries (Buerhop-Lutz
et al. 2018, CC BY-NC-SA 4.0), writes them as a MVTec-layout folder, and trains and evaluates on it as a user would.
"""

import argparse
import csv
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from diffad import DiffADPipeline
from diffad.data import GOOD
from diffad.evaluation.report.pictures import CALLED_COLOUR
from diffad.imaging.drawing import evenly_spaced, filmstrip, marked
from PIL import Image

TRAINING = Path(__file__).parent
TRAIN_GOOD, TEST_GOOD, TEST_DEFECTIVE = 400, 100, 100
# What a demo can do without: other profiles, a first model, and a map chosen for the product
SHORT = ["--profiles", "[balanced]", "--choose_map", "false"]
PICTURE_CELLS = 4  # of which the picture shows the middle two


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--max_train_steps", type=int, default=250)
    options = parser.parse_args()
    started = time.perf_counter()

    data, model, evaluation = (options.output_dir / name for name in ("solar_cells", "model", "evaluation"))
    write_solar_cells(data)
    _run(
        [sys.executable, "-m", "accelerate.commands.launch", *_launch_options(), TRAINING / "train.py", "--config", "cpu-small"]
        + ["--data", data, "--output_dir", model, "--max_train_steps", options.max_train_steps, *SHORT, "--overwrite"]
    )
    _run([sys.executable, "-m", "diffad.cli", "evaluate", data, "--model", model, "--output", evaluation])
    draw_picture(model, data, evaluation / "scores.csv", options.output_dir / "picture.png")
    print(
        f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes.\n"
        f"  model    {model}\n  metrics  {evaluation / 'metrics.md'}\n  report   {evaluation / 'report.html'}"
    )


def write_solar_cells(folder: Path) -> None:
    """Writes train/good, test/good and test/defective; which cell goes where is drawn with a fixed seed.

    Good means that the experts saw no defect (probability 0), defective that they were sure of one (probability 1).
    """
    from elpv_dataset.utils import load_dataset

    images, probabilities, kinds = load_dataset()
    draw = np.random.default_rng(0)
    good, defective = (draw.permutation(np.flatnonzero((kinds == "mono") & (probabilities == p))) for p in (0, 1))
    parts = {
        f"train/{GOOD}": good[:TRAIN_GOOD],
        f"test/{GOOD}": good[TRAIN_GOOD : TRAIN_GOOD + TEST_GOOD],
        "test/defective": defective[:TEST_DEFECTIVE],
    }
    for name, indices in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in indices:
            Image.fromarray(images[index]).save(folder / name / f"cell{index:04d}.png")


def draw_picture(model: Path, data: Path, scores: Path, path: Path) -> None:
    """Two cells that were found, a third and two thirds down the ranking by score: as they are, marked, and repaired."""
    with scores.open(newline="") as file:
        cells = [row for row in csv.DictReader(file) if row["defect"] != GOOD]
    cells.sort(key=lambda row: -float(row["score"]))
    ranked = cells[: max(PICTURE_CELLS, sum(row["called_defective"] == "1" for row in cells))]
    files = [data / ranked[place]["image"] for place in evenly_spaced(len(ranked), PICTURE_CELLS)[1:-1]]
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    output, repaired = pipe(files), pipe.reconstruct(files).images
    frames, labels = [], []
    for i, file in enumerate(files):
        cell = Image.open(file).convert("RGB")
        found = (output.anomaly_maps[i], output.pixel_thresholds[i], output.masks[i])
        overlaid = marked(np.asarray(cell), *found, CALLED_COLOUR)
        frames += [cell, Image.fromarray(overlaid), repaired[i]]
        labels += ["input", f"marked (p = {output.p_values[i]:.3f})", "repaired"]
    filmstrip(frames, labels, height=200).save(path)


def _launch_options() -> list[str]:
    """What `accelerate launch` would otherwise warn about; devices and precision are chosen by train.py."""
    return ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def _run(command: list) -> None:
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    if subprocess.run(words).returncode:
        sys.exit("error: the step above failed")


if __name__ == "__main__":
    main()
