"""Measures what scoring, repair and training cost on a CPU, beside anomalib's PaDiM and PatchCore and the machine's own peak.

    python training/benchmarks/speed.py --model runs/screw-cpu-small-0 --data DATA/screw --threads 2
    python training/benchmarks/speed.py --model runs/screw-cpu-small-0 --data DATA/screw --exported screw-onnx --peers

All contenders work on the same test images, take turns in every round, and count with the median over the rounds: the eager
pipeline, its score alone and with reading of files; every exported folder; the parts of a score; repair; a training step;
passes of the UNet, of which full reverse diffusion would take 250; torch's matrix product; starting Python up to the first
verdict.
--peers adds anomalib's models, eager and in its own OpenVINO export (`pip install 'diffad[benchmarks,peers]'`).
Nothing else should run on the machine. Appends one line to training/benchmarks/results/speed.jsonl and renders the tables
between the markers of model_cards/speed.md from all of them (--tables_only does that alone).
"""

import argparse
import datetime
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from diffad import DiffADPipeline, ImageError
from diffad.data import DataError, Sample, evaluation_samples
from diffad_training.benchmarks import speed_contenders as ours
from diffad_training.benchmarks.records import append_result
from diffad_training.benchmarks.speed_peers import peer_scoring
from diffad_training.benchmarks.speed_tables import update_tables
from diffad_training.benchmarks.speed_timing import DTYPES, Contender, interleaved, machine, matrix_peak, native_precisions
from diffad_training.config import TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "training" / "benchmarks" / "results" / "speed.jsonl"
CARD = ROOT / "model_cards" / "speed.md"
MATRIX_SIDE = 2048  # of the products that measure the machine's peak


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark the speed.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, help="folder of a trained model")
    parser.add_argument("--data", type=Path, help="its category in MVTec layout")
    parser.add_argument("--exported", nargs="+", type=Path, default=[], help="folders that diffad export wrote of the model")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16", "int8"), help="default: those of the CPU, and int8")
    parser.add_argument("--peers", action="store_true", help="time anomalib's PaDiM and PatchCore, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which medians are taken")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="for which each contender is called in a round, at least once"
    )
    parser.add_argument("--images", type=int, default=16, help="test images, spread over good and defective ones")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables_only", action="store_true", help="render the tables from the kept results")
    options = parser.parse_args(arguments)
    if not options.tables_only:
        if options.model is None or options.data is None:
            parser.error("give --model and --data, or --tables_only")
        if min(options.threads, options.runs, options.images, *options.batches) < 1:
            parser.error("threads, runs, images and batches must be at least 1")
        append_result(RESULTS, run(options))
    update_tables(CARD, RESULTS)


def run(options: argparse.Namespace) -> dict:
    """One line of results.

    Raises:
        DataError, ImageError: if the data can't be used.
        ValueError: if the model can't be timed.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    samples = evaluation_samples(options.data)
    chosen = spread(samples, options.images)
    pipe = DiffADPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        timings = interleaved(list(contenders(options, pipe, samples, chosen, Path(folder))), options.runs, options.seconds)
    return {
        "category": options.data.name,
        "model": options.model.name,
        "threads": options.threads,
        "seed": options.seed,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "command": command(options),
        "runs": options.runs,
        "images": len(chosen),
        "reverse_steps": pipe.calibration.config.num_inference_steps or pipe.scheduler.config.num_train_timesteps,
        "megabytes": {ours.OURS: ours.sizes(options.model)} | {path.name: ours.sizes(path) for path in options.exported},
        "timings": timings,
    }


def contenders(
    options: argparse.Namespace, pipe: DiffADPipeline, samples: list[Sample], chosen: list[Sample], folder: Path
) -> Iterator[Contender]:
    """Everything that is timed; `folder` takes what has to be written for it."""
    defective = next(sample for sample in samples if sample.is_defective)
    work = ours.Work.of(pipe, [options.data / sample.name for sample in chosen], options.data / defective.name)
    precisions = options.precisions or [*native_precisions(), "int8"]
    eager = [precision for precision in precisions if precision in DTYPES]
    yield from ours.pipeline_scoring(pipe, work, options.batches, eager)
    in_runtimes: list[Contender] = []
    for exported in options.exported:
        in_runtimes += ours.exported_scoring(exported, work, options.batches, precisions, options.threads)
    yield from in_runtimes
    if options.peers:
        yield from peer_scoring(options.data, chosen, options.batches, options.threads, options.seed, folder)
    yield from ours.timestep_scoring(pipe, work, eager)
    yield from ours.unet_passes(pipe, work, eager)
    settings = dict.fromkeys((contender.labels["runtime"], contender.labels["precision"]) for contender in in_runtimes)
    of_floats = [setting for setting in settings if setting[1] in DTYPES]
    yield from ours.exported_unet_passes(pipe, work, of_floats, options.threads, folder)
    yield from ours.parts(pipe, work)
    yield ours.repair(pipe, work, options.seed)
    yield from ours.training_steps(pipe, work, eager, training_batch(options.model), options.seed)
    yield from matrix_peak(eager, MATRIX_SIDE)
    yield from ours.starts(options.model, options.exported, work.paths[0], options.threads)


def spread(samples: list[Sample], count: int) -> list[Sample]:
    """So many samples, evenly spread over all; all where there are fewer."""
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def training_batch(model: Path) -> int:
    """Images of a training step of the model; the default of the settings where the folder does not hold them."""
    settings = model / "training_config.json"
    return json.loads(settings.read_text())["train_batch_size"] if settings.is_file() else TrainingConfig.train_batch_size


def command(options: argparse.Namespace) -> str:
    """The command that repeats a run."""
    words = ["--model", options.model.name, "--data", f"DATA_ROOT/{options.data.name}", "--threads", str(options.threads)]
    words += ["--runs", str(options.runs), "--seconds", f"{options.seconds:g}", "--images", str(options.images)]
    words += ["--batches", *map(str, options.batches), "--seed", str(options.seed)]
    words += ["--exported", *(path.name for path in options.exported)] if options.exported else []
    words += ["--precisions", *options.precisions] if options.precisions else []
    words += ["--peers"] if options.peers else []
    return f"python training/benchmarks/speed.py {shlex.join(words)}"


if __name__ == "__main__":
    try:
        main()
    except (DataError, ImageError, ValueError) as error:
        sys.exit(f"error: {error}")
