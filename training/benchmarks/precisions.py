"""Compares exported models with the pipeline they come from, in every runtime and precision: scores, labels and metrics.

    python training/benchmarks/precisions.py --data_root DATA --runs RUNS --categories grid screw

RUNS holds models named CATEGORY-cpu-small-SEED, as detection.py leaves them. Each is exported to RUNS/exported, where it is not
there yet, calibrated in each precision on the held-out images behind its thresholds, and scores all test images. Appends one
line for each category to training/benchmarks/results/precisions.jsonl and renders the table of model_cards/speed.md.
"""

import argparse
import datetime
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffad import DiffADPipeline, detection_metrics, localization_metrics
from diffad.data import Sample, evaluation_samples
from diffad.evaluation.scored_samples import PROTOCOL_MAP_SIZE, read_truth
from diffad.export.calibration import calibrate_exported
from diffad.export.folder import export_pipeline
from diffad.runtime import Detector
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results
from diffad_training.benchmarks.speed_timing import machine
from diffad_training.fitting import threshold_samples
from diffad_training.good_images import group_names

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "training" / "benchmarks" / "results" / "precisions.jsonl"
CARD = ROOT / "model_cards" / "speed.md"
# Runtime, weights and precision of what is compared with the pipeline.
VARIANTS = (("onnx", "fp32", "fp32"), ("openvino", "fp32", "fp32"), ("openvino", "fp32", "bf16"), ("openvino", "int8", "int8"))
COLUMNS = ("image AUROC", "pixel AP", "AUPRO", "labels that agree", "largest difference of a score")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--data_root", type=Path)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--categories", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of an inference; the default is all cores")
    parser.add_argument("--tables_only", action="store_true", help="render the table from the kept results")
    options = parser.parse_args(arguments)
    if not options.tables_only:
        for category in options.categories:
            model = options.runs / f"{category}-cpu-small-{options.seed}"
            compared = compare(model, options.data_root / category, options.runs / "exported", options.threads)
            command = f"python training/benchmarks/precisions.py {shlex.join(arguments or sys.argv[1:])}"
            facts = {"category": category, "seed": options.seed, "date": str(datetime.date.today()), "command": command}
            append_result(RESULTS, {**facts, "machine": machine(), "compared": compared})
            print(table([{**facts, "compared": compared}]), flush=True)
    fill_tables(CARD, "precisions", lambda _: table(latest_results(RESULTS, ("category", "seed"))))


def compare(model: Path, data: Path, exported: Path, threads: int | None = None) -> dict[str, dict[str, float]]:
    """Metrics of the pipeline and of its exports on all test images, by variant."""
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    samples, thresholds = evaluation_samples(data), threshold_samples(model)
    truth = read_truth(samples, PROTOCOL_MAP_SIZE)
    reference = scored(pipe, samples)
    good = reference[0][[not sample.is_defective for sample in samples]]
    compared = {"pipeline, fp32": metrics(reference, truth, samples)}
    for export_format, weights, precision in VARIANTS:
        folder = exported / f"{model.name}-{export_format}-{weights}"
        images = [sample.read for sample in thresholds]
        if not folder.exists():
            export_pipeline(pipe, folder, export_format, int8_images=images if weights == "int8" else None)
        calibrate_exported(folder, images, precision, groups=group_names(thresholds), threads=threads)
        found = scored(Detector(folder, threads=threads, precision=precision), samples)
        compared[f"{export_format}, {precision}"] = {
            **metrics(found, truth, samples),
            "labels that agree": float((found[2] == reference[2]).mean()),
            "largest difference of a score": float(np.abs(found[0] - reference[0]).max() / good.std()),
        }
    return compared


def scored(model: DiffADPipeline | Detector, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores `(N,)`, maps `(N, *PROTOCOL_MAP_SIZE)` and labels `(N,)` of all images, one by one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few calibration images
        outputs = [model(sample.read, batch_size=1, map_size=PROTOCOL_MAP_SIZE) for sample in samples]
    scores, labels = (np.concatenate([getattr(o, name) for o in outputs]) for name in ("image_scores", "is_defective"))
    return scores, np.stack([output.anomaly_maps[0] for output in outputs]), labels


def metrics(found: tuple[np.ndarray, np.ndarray, np.ndarray], truth: np.ndarray, samples: Sequence[Sample]) -> dict[str, float]:
    scores, maps, _ = found
    of_images = detection_metrics(scores, np.array([sample.is_defective for sample in samples]))
    of_pixels = localization_metrics(maps, truth)
    values = of_images["image_auroc"], of_pixels["pixel_ap"], of_pixels["aupro_30"]
    return dict(zip(COLUMNS, map(float, values), strict=False))


def table(results: Sequence[dict]) -> str:
    """Markdown, a row for each category and variant; metrics in percent, differences in good scores' standard deviations."""
    lines = [f"| category | runtime, precision | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for result in results:
        for name, values in result["compared"].items():
            cells = [f"{100 * values[column]:.1f}" if column in values else "" for column in COLUMNS[:-1]]
            difference = values.get(COLUMNS[-1])
            cells.append("" if difference is None else f"{difference:.1g}")
            lines.append(f"| {result['category']} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
