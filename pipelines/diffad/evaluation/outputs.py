"""What an evaluation leaves: a table of metrics, the scores of all images, sample pictures and a report."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..imaging.drawing import evenly_spaced, heat_map, marked, outline, resized, save_sheet
from ..pipeline_diffad import DiffADPipeline
from ..system.text import printable, safe_cell
from .counts import count_pixels
from .report import Pictures, Report, ReportRow, draw_pictures
from .report.pictures import CALLED_COLOUR, TRUTH_COLOUR
from .results import main_category
from .scored_samples import ScoredSamples

SHEET_IMAGES_PER_DEFECT = 3


def metrics_table(results: dict[str, Any]) -> str:
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
        *([f"Masks at that rate: {masks_in_words(point)}."] if "seg_f1" in point else []),
        f"Maps and masks are compared at {results['map_size']} (height x width).",
        f"{cost['images_per_second']:.1f} images/s one by one on {cost['device']} ({cost['threads']} threads); "
        f"peak memory {cost['peak_memory_mib']:.0f} MiB; {cost['unet_parameters'] / 1e6:.1f} M parameters.",
    ]
    return "\n".join(lines) + "\n"


def masks_in_words(operating_point: dict[str, Any]) -> str:
    """What the pixels called defective are worth, of the operating point of an evaluation with masks."""
    f1, share = operating_point["seg_f1"], operating_point["seg_f1_share"]
    return f"pixel F1 {f1:.1%}, {share:.0%} of the best single threshold's"


def write_scores(path: Path, scored: ScoredSamples) -> None:
    """Writes scores.csv: one row per image."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "defect", "score", "p_value", "called_defective"])
        for i, sample in enumerate(scored.samples):
            names = (safe_cell(printable(name)) for name in (sample.name, sample.defect))
            score, p_value = scored.image_scores[i], scored.p_values[i]
            writer.writerow([*names, f"{score:.6g}", f"{p_value:.6g}", int(scored.called_defective[i])])


def write_sheet(path: Path, scored: ScoredSamples) -> None:
    """Draws the highest, the median and the lowest scored image of every defect type and of the good ones."""
    rows = []
    defects = np.array([sample.defect for sample in scored.samples])
    for defect in np.unique(defects):
        ranked = np.flatnonzero(defects == defect)
        ranked = ranked[np.argsort(-scored.image_scores[ranked], kind="stable")]
        rows += [_sheet_row(scored, i) for i in ranked[evenly_spaced(len(ranked), SHEET_IMAGES_PER_DEFECT)]]
    save_sheet(path, ("input", "truth", "heat map", "overlay"), rows)


def build_report(pipe: DiffADPipeline, scored: ScoredSamples, results: dict[str, Any]) -> Report:
    """The report of an evaluation; its pictures are drawn and repaired only when it is written.

    Its thresholds are those of the category that most images were scored as; pictures show each image's own.
    """
    point = results["operating_point"]
    false_alarm_rate = point["requested_false_alarm_rate"]
    category = main_category(pipe, scored)
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in results["recipe"]["weights"].items())
    cost = results["cost"]
    return Report(
        title=f"Evaluation on {results['data']}",
        facts={
            "Model": f"{results['model']}, {cost['unet_parameters'] / 1e6:.1f} M parameters",
            "Test images": f"{results['images']['good']} good, {results['images']['defective']} defective",
            **_category_fact(results["class_labels"]),
            "Score": weights,
            **({"Masks": masks_in_words(point)} if "seg_f1" in point else {}),
            "Maps and masks": f"compared at {results['map_size']} (height x width)",
            "Speed": f"{cost['images_per_second']:.1f} images/s one by one on {cost['device']}",
        },
        rows=[
            ReportRow(
                name=sample.name,
                score=float(scored.image_scores[i]),
                p_value=float(scored.p_values[i]),
                called_defective=bool(scored.called_defective[i]),
                pictures=partial(_pictures, pipe, scored, i),
                is_defective=sample.is_defective,
                defect=sample.defect if sample.is_defective else None,
            )
            for i, sample in enumerate(scored.samples)
        ],
        false_alarm_rate=false_alarm_rate,
        image_threshold=pipe.calibration.image_threshold(false_alarm_rate, category),
        pixel_threshold=pipe.calibration.pixel_threshold(false_alarm_rate, category),
        calibration_scores=pipe.calibration.calibration_scores_of(category),
        metrics=results["scores"]["ensemble"],
        pixel_counts=None if scored.masks is None else count_pixels(scored.maps, scored.masks),
    )


def _category_fact(categories: dict[str, Any]) -> dict[str, str]:
    """What the report says of the categories that images were scored as, of a model of several."""
    if not categories["images"]:
        return {}
    counts = sorted(categories["images"].items(), key=lambda item: -item[1])
    how = "given" if categories["given"] else "recognised"
    return {"Category": f"{how}: " + ", ".join(f"{name} ({count} images)" for name, count in counts)}


def _pictures(pipe: DiffADPipeline, scored: ScoredSamples, index: int) -> Pictures:
    image = scored.samples[index].read()
    repaired = None
    if scored.called_defective[index] and pipe.residual_gaussian is not None:  # only what is trained can repair
        category = None if scored.categories is None else scored.categories[index]
        rate = float(scored.false_alarm_rates[index])
        repaired = pipe.reconstruct(image, categories=category, false_alarm_rate=rate).images[0]
    truth = None if scored.masks is None else scored.masks[index]
    found = (scored.maps[index], scored.pixel_thresholds[index], scored.called_masks[index])
    return draw_pictures(image, *found, truth, repaired)


def _sheet_row(scored: ScoredSamples, index: int) -> tuple[str, list[np.ndarray]]:
    sample, anomaly_map = scored.samples[index], scored.maps[index]
    pixel_threshold = scored.pixel_thresholds[index]
    image = resized(sample.read(), anomaly_map.shape)
    truth = image if scored.masks is None else outline(image, scored.masks[index], TRUTH_COLOUR)
    overlaid = marked(image, anomaly_map, pixel_threshold, scored.called_masks[index], CALLED_COLOUR)
    verdict = "called defective" if scored.called_defective[index] else "called good"
    caption = f"{sample.defect}: {Path(sample.name).name}, score {scored.image_scores[index]:.2f}, {verdict}"
    return printable(caption), [image, truth, heat_map(anomaly_map, pixel_threshold), overlaid]
