"""Scores a category's test images with a trained pipeline and says how well it found the defects.

    python training/evaluate.py --model runs/model --data DATA --output_dir runs/evaluation

DATA is a MVTec-layout folder: test/good, test/<defect> and, for pixel metrics, ground_truth/<defect>. A model of several
categories is evaluated on one of them: --category NAME, or let it recognise the category of each image. Writes metrics.json,
metrics.md, scores.csv, sheet.png (input, truth, heat map, overlay) and report.html (all of it on one page, with confidence
intervals, curves and repaired images) to the output folder.

Maps and masks are compared at 256x256, the protocol of published figures; those of a model that scores images in tiles at the
size at which it scores them, of which a defect of a few pixels is left. --map_size asks for another size.
"""

import argparse
import csv
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from diffad import DiffADPipeline, ImageError, detection_metrics, localization_metrics
from diffad.data import DataError, Sample, evaluation_samples, load_mask
from diffad.evaluation.bootstrap import count_pixels
from diffad.evaluation.report import Pictures, Report, ReportRow, draw_pictures, write_report
from diffad.evaluation.report.pictures import CALLED_COLOUR, TRUTH_COLOUR
from diffad.imaging.drawing import evenly_spaced, heat_map, marked, outline, resized, save_sheet
from diffad.memory import keep_freed_memory, peak_memory_mib
from diffad.scoring.calibration import TERMS, Calibration
from diffad.scoring.tiling import working_size

PROTOCOL_MAP_SIZE = (256, 256)
# Maps of tiled models are made smaller where all of them have more pixels: the exact metrics sort them all, at some 150 bytes
# each, and lie on the disk once for every score term. The protocol's maps of 600 images are as many.
MAX_MAP_PIXELS = 40_000_000
# Score rows of the metrics table besides the stored recipe ("ensemble"): the paper's Eq. 11 and each of its terms alone.
PAPER_ALPHA = 0.5
SHEET_IMAGES_PER_DEFECT = 3


@dataclass
class Evaluation:
    """Everything measured on N test images.

    Args:
        samples: the images.
        is_defective: `(N,)` bool, True for defective ones.
        masks: `(N, height, width)` bool truth, or None where the data has no masks.
        term_map_names: score terms at their timesteps, in the order of `partials`.
        partials: `(N, len(term_map_names), height, width)` standardised term maps, memory-mapped.
        maps: `(N, height, width)` anomaly maps of the stored recipe, memory-mapped.
        image_scores, p_values, verdicts: `(N,)` of the stored recipe.
        false_alarm_rates: `(N,)`, that the verdicts are for.
        pixel_thresholds: `(N,)`, above them pixels of each image are called defective.
        categories: category of each image, given or recognised, of a model of several categories.
    """

    samples: list[Sample]
    is_defective: np.ndarray
    masks: np.ndarray | None
    term_map_names: list[str]
    partials: np.ndarray
    maps: np.ndarray
    image_scores: np.ndarray
    p_values: np.ndarray
    verdicts: np.ndarray
    false_alarm_rates: np.ndarray
    pixel_thresholds: np.ndarray
    categories: list[str] | None = None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Evaluate a trained diffad pipeline.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or Hub name of a pipeline")
    parser.add_argument("--data", required=True, help="MVTec-layout folder with test/good and test/<defect>")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--false_alarm_rate",
        type=float,
        help="share of good parts that may be called defective (default: 0.05, or the smallest that the calibration supports)",
    )
    parser.add_argument(
        "--map_size",
        type=parse_map_size,
        metavar="HEIGHTxWIDTH",
        help="at which maps and masks are compared; memory grows with its pixels times the images (default: 256x256; for a "
        "model of tiles the size at which it scores the first image, or less where all maps would exceed 40 million pixels)",
    )
    parser.add_argument("--category", help="the data's category, for a model of several; without it images are recognised")
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write report.html; repairing images for it takes a few seconds each",
    )
    options = parser.parse_args(arguments)

    keep_freed_memory()
    samples = evaluation_samples(options.data)
    pipe = DiffADPipeline.from_pretrained(options.model)
    try:
        categories = pipe.category_indices(options.category, 1)
        pipe.calibration.supported_rates(options.false_alarm_rate, categories)
    except ValueError as error:
        sys.exit(f"error: {error}")
    map_size = options.map_size or default_map_size(samples, pipe.calibration.config.short_side)
    masks = read_truth(samples, map_size)  # decodes everything: bad input ends the run here
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output_dir) as scratch:
        evaluation = score_samples(
            pipe, samples, masks, map_size, Path(scratch), options.batch_size, options.false_alarm_rate, options.category
        )
        results = summarize(pipe, evaluation, options.false_alarm_rate, options.category)
        results.update(model=options.model, data=Path(options.data).name)
        (options.output_dir / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
        table = metrics_table(results)
        (options.output_dir / "metrics.md").write_text(table)
        write_scores(options.output_dir / "scores.csv", evaluation)
        write_sheet(options.output_dir / "sheet.png", evaluation)
        if options.report:
            write_report(build_report(pipe, evaluation, results), options.output_dir / "report.html")
    print(table)
    for name in ("metrics.json", "metrics.md", "scores.csv", "sheet.png") + ("report.html",) * options.report:
        print(f"wrote {options.output_dir / name}")


def parse_map_size(text: str) -> tuple[int, int]:
    """`HEIGHTxWIDTH` as `(height, width)`."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, such as 512x768, got {text!r}")
    return int(sides[0]), int(sides[1])


def default_map_size(samples: Sequence[Sample], short_side: int | None) -> tuple[int, int]:
    """`(height, width)` at which the maps and masks of all images are compared.

    The protocol's, or, for a model that scores images in tiles at `short_side` pixels, the size at which it scores the first
    image; with its aspect, but so small that the maps of all images have no more than `MAX_MAP_PIXELS`.
    """
    if short_side is None:
        return PROTOCOL_MAP_SIZE
    image = samples[0].read()
    height, width = working_size((image.height, image.width), short_side)
    scale = min(1.0, math.sqrt(MAX_MAP_PIXELS / (len(samples) * height * width)))
    return math.floor(height * scale), math.floor(width * scale)


def read_truth(samples: Sequence[Sample], map_size: tuple[int, int]) -> np.ndarray | None:
    """Masks `(N, *map_size)`, or None if the defective images have none.

    Raises:
        ImageError, DataError: naming the first image or mask that can't be used.
    """
    if any(sample.mask for sample in samples):
        for sample in samples:
            if not sample.is_defective:
                sample.read()
        return np.stack([load_mask(sample, map_size) for sample in samples])
    for sample in samples:
        sample.read()
    return None


def score_samples(
    pipe: DiffADPipeline,
    samples: list[Sample],
    masks: np.ndarray | None,
    map_size: tuple[int, int],
    scratch: Path,
    batch_size: int = 8,
    false_alarm_rate: float | None = None,
    category: str | None = None,
) -> Evaluation:
    """Scores all samples; maps go to files in `scratch`, so that memory grows with the batch only."""
    names = pipe.calibration.term_map_names
    partials = _new_array(scratch / "partials.npy", (len(samples), len(names), *map_size))
    maps = _new_array(scratch / "maps.npy", (len(samples), *map_size))
    scores, p_values, verdicts, rates, pixel_thresholds, categories = [], [], [], [], [], []
    pipe.set_progress_bar_config(disable=True)
    for start in tqdm(range(0, len(samples), batch_size), desc="scoring", mininterval=2):
        batch = samples[start : start + batch_size]
        output = pipe(
            [sample.read for sample in batch],
            batch_size=batch_size,
            categories=category,
            false_alarm_rate=false_alarm_rate,
            map_size=map_size,
            return_term_maps=True,
        )
        for i in range(len(batch)):
            maps[start + i] = output.anomaly_maps[i]
            partials[start + i] = [output.term_maps[i][name] for name in names]
        scores.append(output.image_scores)
        p_values.append(output.p_values)
        verdicts.append(output.is_defective)
        rates.append(output.false_alarm_rates)
        pixel_thresholds.append(output.pixel_thresholds)
        categories += output.categories or []
    return Evaluation(
        samples=samples,
        is_defective=np.array([sample.is_defective for sample in samples]),
        masks=masks,
        term_map_names=names,
        partials=partials,
        maps=maps,
        image_scores=np.concatenate(scores),
        p_values=np.concatenate(p_values),
        verdicts=np.concatenate(verdicts),
        false_alarm_rates=np.concatenate(rates),
        pixel_thresholds=np.concatenate(pixel_thresholds),
        categories=categories or None,
    )


def images_per_second(pipe: DiffADPipeline, samples: Sequence[Sample], count: int = 20, category: str | None = None) -> float:
    """Speed of scoring one image at a time with the stored recipe, from file to map at the image's size."""
    pipe(samples[0].read, categories=category)
    started = time.perf_counter()
    for i in range(count):
        pipe(samples[i % len(samples)].read, categories=category)
    return count / (time.perf_counter() - started)


def summarize(
    pipe: DiffADPipeline, evaluation: Evaluation, false_alarm_rate: float | None = None, category: str | None = None
) -> dict:
    """All metrics of the stored recipe, of the paper's score and of every term, with cost and operating point.

    Rate and held-out normals are those of the category that most images were scored as.
    """
    scored_as = main_class(pipe, evaluation)
    recipe = pipe.calibration.config
    good, defective = evaluation.verdicts[~evaluation.is_defective], evaluation.verdicts[evaluation.is_defective]
    scores = {"ensemble": measure(evaluation.maps, evaluation.image_scores, evaluation)}
    for name, weights in score_rows(evaluation.term_map_names).items():
        scores[name] = measure(*combine(pipe.calibration, evaluation, weights), evaluation)
    return {
        "scores": scores,
        "map_size": "x".join(map(str, evaluation.maps.shape[1:])),
        "images": {"good": len(good), "defective": len(defective)},
        "operating_point": {
            "requested_false_alarm_rate": pipe.calibration.supported_rate(false_alarm_rate, scored_as),
            "held_out_normals": pipe.calibration.images_per_category[scored_as],
            "realised_false_alarm_rate": float(good.mean()),
            "detection_rate": float(defective.mean()),
        },
        "class_labels": {"given": category is not None, "images": dict(Counter(evaluation.categories or ()))},
        "recipe": {key: value for key, value in recipe.items() if not key.startswith("_")},
        "cost": {
            "images_per_second": images_per_second(pipe, evaluation.samples, category=category),
            "peak_memory_mib": peak_memory_mib(),
            "unet_parameters": sum(p.numel() for p in pipe.unet.parameters()),
            "threads": torch.get_num_threads(),
            "device": str(pipe.device),
        },
    }


def main_class(pipe: DiffADPipeline, evaluation: Evaluation) -> int:
    """Index of the category that most images were scored as; 0 where there is one."""
    if evaluation.categories is None:
        return 0
    return pipe.category_names.index(Counter(evaluation.categories).most_common(1)[0][0])


def score_rows(term_map_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Weights of the term maps for each further row of the table."""

    def term(name: str) -> list[str]:
        return [partial for partial in term_map_names if partial.partition("@")[0] == name]

    rows = {
        "paper (Eq. 11)": {
            **{name: PAPER_ALPHA / len(term("kl")) for name in term("kl")},
            **{name: (1 - PAPER_ALPHA) / len(term("feature")) for name in term("feature")},
        }
    }
    for name in TERMS:
        rows[name] = {partial: 1 / len(term(name)) for partial in term(name)}
    for name in term_map_names:
        if "@" in name:
            rows[name] = {name: 1.0}
    return rows


def combine(calibration: Calibration, evaluation: Evaluation, weights: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum of term maps, `(N, height, width)`, and its image scores `(N,)`, in the model's region of interest."""
    total = np.zeros_like(evaluation.maps)
    for name, weight in weights.items():
        total += weight * evaluation.partials[:, evaluation.term_map_names.index(name)]
    maps = calibration.mask_outside(torch.from_numpy(total).to(calibration.device))
    return maps.cpu().numpy(), calibration.image_scores(maps).cpu().numpy()


def metrics_table(results: dict) -> str:
    """The metrics as a Markdown table in percent, with cost and operating point below."""
    columns = list(results["scores"]["ensemble"])
    lines = [
        "| score | " + " | ".join(name.replace("_", " ") for name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, metrics in results["scores"].items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * metrics[column]:.1f}" for column in columns) + " |")
    images, point, cost = results["images"], results["operating_point"], results["cost"]
    lines += [
        "",
        f"{images['good']} good and {images['defective']} defective images. At a requested false-alarm rate of "
        f"{point['requested_false_alarm_rate']:.1%} (threshold from {point['held_out_normals']} held-out good images) "
        f"{point['detection_rate']:.1%} of the defective and {point['realised_false_alarm_rate']:.1%} of the good test images "
        "are called defective.",
        f"Maps and masks are compared at {results['map_size']} (height x width).",
        f"{cost['images_per_second']:.1f} images/s one by one on {cost['device']} ({cost['threads']} threads); "
        f"peak memory {cost['peak_memory_mib']:.0f} MiB; {cost['unet_parameters'] / 1e6:.1f} M parameters.",
    ]
    return "\n".join(lines) + "\n"


def write_scores(path: Path, evaluation: Evaluation) -> None:
    """One row per image."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "defect", "score", "p_value", "called_defective"])
        for i, sample in enumerate(evaluation.samples):
            score, p_value = evaluation.image_scores[i], evaluation.p_values[i]
            writer.writerow([sample.name, sample.defect, f"{score:.6g}", f"{p_value:.6g}", int(evaluation.verdicts[i])])


def write_sheet(path: Path, evaluation: Evaluation) -> None:
    """Pictures of the highest, the median and the lowest scored image of every defect type and of the good ones."""
    rows = []
    defects = np.array([sample.defect for sample in evaluation.samples])
    for defect in np.unique(defects):
        ranked = np.flatnonzero(defects == defect)
        ranked = ranked[np.argsort(-evaluation.image_scores[ranked], kind="stable")]
        places = evenly_spaced(len(ranked), SHEET_IMAGES_PER_DEFECT)
        rows += [_sheet_row(evaluation, i) for i in ranked[places]]
    save_sheet(path, ("input", "truth", "heat map", "overlay"), rows)


def build_report(pipe: DiffADPipeline, evaluation: Evaluation, results: dict) -> Report:
    """The report of an evaluation; its pictures are drawn and repaired only when it is written.

    Its thresholds are those of the category that most images were scored as; pictures show each image's own.
    """
    false_alarm_rate = results["operating_point"]["requested_false_alarm_rate"]
    categories, category = evaluation.categories, main_class(pipe, evaluation)

    def pictures(index: int) -> Pictures:
        image = evaluation.samples[index].read()
        repaired = None
        if evaluation.verdicts[index]:
            label = None if categories is None else categories[index]
            rate = float(evaluation.false_alarm_rates[index])
            repaired = pipe.reconstruct(image, categories=label, false_alarm_rate=rate).images[0]
        truth = None if evaluation.masks is None else evaluation.masks[index]
        return draw_pictures(image, evaluation.maps[index], evaluation.pixel_thresholds[index], truth, repaired)

    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in results["recipe"]["weights"].items())
    cost = results["cost"]
    return Report(
        title=f"Evaluation on {results['data']}",
        facts={
            "Model": f"{results['model']}, {cost['unet_parameters'] / 1e6:.1f} M parameters",
            "Test images": f"{results['images']['good']} good, {results['images']['defective']} defective",
            **_category_fact(results["class_labels"]),
            "Score": weights,
            "Maps and masks": f"compared at {results['map_size']} (height x width)",
            "Speed": f"{cost['images_per_second']:.1f} images/s one by one on {cost['device']}",
        },
        rows=[
            ReportRow(
                name=sample.name,
                score=float(evaluation.image_scores[i]),
                p_value=float(evaluation.p_values[i]),
                label=bool(evaluation.verdicts[i]),
                pictures=partial(pictures, i),
                truth=sample.is_defective,
                defect=sample.defect if sample.is_defective else None,
            )
            for i, sample in enumerate(evaluation.samples)
        ],
        false_alarm_rate=false_alarm_rate,
        image_threshold=pipe.calibration.image_threshold(false_alarm_rate, category),
        pixel_threshold=pipe.calibration.pixel_threshold(false_alarm_rate, category),
        calibration_scores=pipe.calibration.calibration_scores_of(category),
        metrics=results["scores"]["ensemble"],
        pixel_counts=None if evaluation.masks is None else count_pixels(evaluation.maps, evaluation.masks),
    )


def _category_fact(categories: dict) -> dict[str, str]:
    """What the report says of the categories that images were scored as, of a model of several."""
    if not categories["images"]:
        return {}
    counts = sorted(categories["images"].items(), key=lambda item: -item[1])
    how = "given" if categories["given"] else "recognised"
    return {"Category": f"{how}: " + ", ".join(f"{name} ({count} images)" for name, count in counts)}


def measure(maps: np.ndarray, image_scores: np.ndarray, evaluation: Evaluation) -> dict[str, float]:
    """Metrics of one score's maps `(N, height, width)` and image scores `(N,)`; those of pixels where there is a truth."""
    metrics = detection_metrics(image_scores, evaluation.is_defective)
    if evaluation.masks is not None:
        metrics.update(localization_metrics(maps, evaluation.masks))
    return metrics


def _sheet_row(evaluation: Evaluation, index: int) -> tuple[str, list[np.ndarray]]:
    sample, anomaly_map = evaluation.samples[index], evaluation.maps[index]
    pixel_threshold = evaluation.pixel_thresholds[index]
    image = resized(sample.read(), anomaly_map.shape)
    truth = image if evaluation.masks is None else outline(image, evaluation.masks[index], TRUTH_COLOUR)
    overlaid = marked(image, anomaly_map, pixel_threshold, CALLED_COLOUR)
    verdict = "called defective" if evaluation.verdicts[index] else "called good"
    caption = f"{sample.defect}: {Path(sample.name).name}, score {evaluation.image_scores[index]:.2f}, {verdict}"
    return caption, [image, truth, heat_map(anomaly_map, pixel_threshold), overlaid]


def _new_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


if __name__ == "__main__":
    try:
        main()
    except (DataError, ImageError) as error:
        sys.exit(f"error: {error}")
