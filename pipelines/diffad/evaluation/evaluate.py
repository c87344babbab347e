"""Scores a data set's test images with a trained pipeline and says how well it found the defects."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data import evaluation_samples
from ..pipeline_diffad import DiffADPipeline
from .outputs import build_report, metrics_table, write_scores, write_sheet
from .report import write_report
from .results import summarize
from .scored_samples import ScoredSamples, default_map_size, read_truth, score_samples


def evaluate_model(
    pipe: DiffADPipeline,
    data: str | Path,
    output_dir: Path,
    *,
    batch_size: int = 8,
    false_alarm_rate: float | None = None,
    category: str | None = None,
    map_size: tuple[int, int] | None = None,
    report: bool = True,
    score: Callable[..., ScoredSamples] = score_samples,
) -> dict[str, Any]:
    """Writes metrics.json, metrics.md, scores.csv, sheet.png and, if asked for, report.html to a folder.

    sheet.png shows input, truth, heat map and overlay of some images; report.html holds everything on one page, with
    confidence intervals, curves and repaired images.

    Args:
        pipe: calibrated. Its progress bar is turned off.
        data: good and defective test images in any layout that is recognised; with masks for pixel metrics.
        output_dir: made if it is missing.
        batch_size: images per forward pass.
        false_alarm_rate: share of good parts that may be called defective; None is the default of scoring.
        category: of all images, for a model of several categories; None recognises each image's.
        map_size: `(height, width)` at which maps and masks are compared. None is 256x256, the protocol of published figures, or
            for a model that scores images in tiles about the size at which it scores the first, of which a defect of a few
            pixels is left. Memory grows with its pixels times the images.
        report: repairing images for it takes a few seconds each.
        score: takes the place of [`score_samples`], such as where other processes do the work.

    Returns:
        The content of metrics.json.

    Raises:
        DataError, ImageError: if the data or an image can't be used; before anything is scored.
        ValueError: if the pipeline can't give the false-alarm rate or does not know the category; before anything is scored.
    """
    samples = evaluation_samples(data)
    categories = pipe.category_indices(category, 1)
    pipe.calibration.supported_rates(false_alarm_rate, categories)
    map_size = map_size or default_map_size(samples, pipe.calibration.config.short_side)
    masks = read_truth(samples, map_size)  # decodes everything: bad input ends the run here
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir) as scratch:
        scored = score(pipe, samples, masks, map_size, Path(scratch), batch_size, false_alarm_rate, category)
        results = summarize(pipe, scored, false_alarm_rate, category)
        results.update(model=str(pipe.name_or_path), model_digest=pipe.digest, data=Path(data).name)
        (output_dir / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
        (output_dir / "metrics.md").write_text(metrics_table(results))
        write_scores(output_dir / "scores.csv", scored)
        write_sheet(output_dir / "sheet.png", scored)
        if report:
            write_report(build_report(pipe, scored, results), output_dir / "report.html")
    return results
