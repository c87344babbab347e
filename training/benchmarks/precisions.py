"""Compares exported models with the pipeline they come from, in every profile, runtime and precision.

    python training/benchmarks/precisions.py --data_root DATA --runs RUNS --categories grid screw

RUNS holds models named CATEGORY-cpu-small-SEED, as detection.py leaves them. Each is exported to RUNS/exported, where it is not
there yet, calibrated in each precision on the held-out images behind its thresholds, and scores all test images. Appends one
line for each category and profile to training/benchmarks/results/precisions.jsonl, and renders the table of the speed card.
Images per second are of this run, one by one, with reading, resizing and the verdict, maps of 256x256.
"""

import argparse
import datetime
import shlex
import time
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
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
FRONT = ROOT / "model_cards" / "speed_front.png"
IDENTITY = ("category", "profile", "seed")
# Runtime, weights and precision of what is compared with the pipeline.
VARIANTS = (
    *(("onnx", "fp32", "fp32"), ("openvino", "fp32", "fp32"), ("openvino", "fp32", "bf16")),
    *(("openvino", "int8", "int8"), ("openvino", "int8", "bf16")),
)
COLUMNS = ("image AUROC", "pixel AP", "AUPRO", "found", "labels that agree", "largest difference of a score", "images/s")
PERCENT = COLUMNS[:5]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--data_root", type=Path)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--categories", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profiles", nargs="+", default=["balanced"])
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino"], choices=("onnx", "openvino"))
    parser.add_argument("--weights", nargs="+", default=["fp32", "int8"], choices=("fp32", "int8"))
    parser.add_argument("--threads", type=int, help="of an inference; the default is all cores")
    parser.add_argument("--tables_only", action="store_true", help="render the table from the kept results")
    options = parser.parse_args(arguments)
    if not options.tables_only:
        variants = [one for one in VARIANTS if one[0] in options.formats and one[1] in options.weights]
        for category, profile in product(options.categories, options.profiles):
            model = options.runs / f"{category}-cpu-small-{options.seed}"
            data, exported = options.data_root / category, options.runs / "exported"
            compared = compare(model, profile, data, exported, variants, options.threads)
            facts = {"category": category, "profile": profile, "seed": options.seed, "date": str(datetime.date.today())}
            facts |= {"command": command(options, category, profile), "threads": options.threads, "compared": compared}
            append_result(RESULTS, {**facts, "machine": machine()})
            print(table([facts]), flush=True)
    update_table(CARD, RESULTS)
    save_front(latest_results(RESULTS, IDENTITY), FRONT)


def command(options: argparse.Namespace, category: str, profile: str) -> str:
    """The command that repeats one result."""
    words = ["--data_root", "DATA", "--runs", "RUNS", "--categories", category, "--profiles", profile]
    words += ["--formats", *options.formats, "--weights", *options.weights, "--seed", str(options.seed)]
    words += [] if options.threads is None else ["--threads", str(options.threads)]
    return f"python training/benchmarks/precisions.py {shlex.join(words)}"


def update_table(card: Path, results: Path) -> None:
    """Renders the table between the card's markers from the newest results."""
    fill_tables(card, "precisions", lambda _: table(latest_results(results, IDENTITY)))


def compare(
    model: Path, profile: str, data: Path, exported: Path, variants: Sequence[tuple[str, str, str]], threads: int | None = None
) -> dict[str, dict[str, float]]:
    """Metrics of the pipeline and of its exports on all test images, by variant."""
    pipe = DiffADPipeline.from_pretrained(model).with_profile(profile)
    if threads is not None:
        torch.set_num_threads(threads)
    pipe.set_progress_bar_config(disable=True)
    samples, thresholds = evaluation_samples(data), threshold_samples(model)
    truth = read_truth(samples, PROTOCOL_MAP_SIZE)
    reference = scored(pipe, samples)
    good = reference.scores[[not sample.is_defective for sample in samples]]
    compared = {"pipeline, fp32": metrics(reference, truth, samples)}
    for export_format, weights, precision in variants:
        folder = exported / f"{model.name}-{profile}-{export_format}-{weights}"
        images = [sample.read for sample in thresholds]
        if not folder.exists():
            export_pipeline(pipe, folder, export_format, int8_images=images if weights == "int8" else None)
        calibrate_exported(folder, images, precision, groups=group_names(thresholds), threads=threads)
        found = scored(Detector(folder, threads=threads, precision=precision), samples)
        name = precision if weights in ("fp32", precision) else f"{weights} and {precision}"
        compared[f"{export_format}, {name}"] = {
            **metrics(found, truth, samples),
            "labels that agree": float((found.labels == reference.labels).mean()),
            "largest difference of a score": float(np.abs(found.scores - reference.scores).max() / good.std()),
        }
    return compared


class Scored(NamedTuple):
    """Scores `(N,)`, maps `(N, *PROTOCOL_MAP_SIZE)` and labels `(N,)` of images, and the median seconds of one."""

    scores: np.ndarray
    maps: np.ndarray
    labels: np.ndarray
    seconds: float


def scored(model: DiffADPipeline | Detector, samples: Sequence[Sample]) -> Scored:
    """Scores images one by one."""
    outputs, seconds = [], []
    for sample in samples:
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few calibration images
            outputs.append(model(sample.read, batch_size=1, map_size=PROTOCOL_MAP_SIZE))
        seconds.append(time.perf_counter() - started)
    scores, labels = (np.concatenate([getattr(o, name) for o in outputs]) for name in ("image_scores", "is_defective"))
    return Scored(scores, np.stack([output.anomaly_maps[0] for output in outputs]), labels, float(np.median(seconds)))


def metrics(found: Scored, truth: np.ndarray, samples: Sequence[Sample]) -> dict[str, float]:
    is_defective = np.array([sample.is_defective for sample in samples])
    of_images, of_pixels = detection_metrics(found.scores, is_defective), localization_metrics(found.maps, truth)
    values = of_images["image_auroc"], of_pixels["pixel_ap"], of_pixels["aupro_30"], found.labels[is_defective].mean()
    return {**dict(zip(COLUMNS, map(float, values), strict=False)), "images/s": 1 / found.seconds}


def table(results: Sequence[dict]) -> str:
    """Markdown, a row for each category, profile and variant; differences in good scores' standard deviations."""
    lines = [f"| category | profile | runtime, precision | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for result in results:
        for name, values in result["compared"].items():
            cells = [f"{100 * values[column]:.1f}" if column in values else "" for column in PERCENT]
            difference = values.get("largest difference of a score")
            cells += ["" if difference is None else f"{difference:.1g}", f"{values['images/s']:.1f}"]
            lines.append(f"| {result['category']} | {result['profile']} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def common_categories(results: Sequence[dict]) -> list[str]:
    """Categories that have a result in every profile."""
    of_profiles: dict[str, set[str]] = {}
    for result in results:
        of_profiles.setdefault(result["profile"], set()).add(result["category"])
    return sorted(set.intersection(*of_profiles.values()))


def save_front(results: Sequence[dict], path: Path) -> None:
    """Draws AUPRO and image AUROC against images/s: a point for each profile and variant.

    It is the mean over the categories that were measured in every profile, and a variant must have all of them, so that points
    compare.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullLocator

    points: dict[tuple[str, str], list[dict]] = {}
    categories = common_categories(results)
    for result in (result for result in results if result["category"] in categories):
        for variant, values in result["compared"].items():
            points.setdefault((result["profile"], variant), []).append(values)
    points = {key: of_categories for key, of_categories in points.items() if len(of_categories) == len(categories)}
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    markers = dict(zip(dict.fromkeys(variant for _, variant in points), "osD^vP", strict=False))
    colours = dict(zip(dict.fromkeys(profile for profile, _ in points), pyplot.cm.tab10.colors, strict=False))
    for axis, metric in zip(axes, ("AUPRO", "image AUROC"), strict=True):
        for (profile, variant), of_categories in points.items():
            speed, value = (np.mean([values[name] for values in of_categories]) for name in ("images/s", metric))
            style = {"marker": markers[variant], "color": colours[profile], "label": f"{profile}: {variant}"}
            axis.plot(speed, 100 * value, linestyle="", markersize=8, **style)
        axis.set(xscale="log", xlabel="images/s, one core", ylabel=f"{metric}, %")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    figure.suptitle(f"mean of {', '.join(categories)}", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
