"""What an evaluation measures: metrics of the stored score and of each of its terms, operating point and cost."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data import Sample
from ..pipeline_diffad import DiffADPipeline
from ..scoring.calibration import Calibration
from ..scoring.config import term_of
from ..scoring.presets import PAPER_ALPHA
from ..system.memory import peak_memory_mib
from .metrics import detection_metrics, localization_metrics, mask_metrics
from .scored_samples import ScoredSamples

UNKNOWN = "unknown"  # in place of the category of a product that the model has never seen


def summarize(
    pipe: DiffADPipeline, scored: ScoredSamples, false_alarm_rate: float | None = None, category: str | None = None
) -> dict[str, Any]:
    """All metrics of the stored score settings, of the paper's score and of every term, with cost and operating point.

    Rate and number of calibration images are those of the category that most images were scored as.

    Args:
        false_alarm_rate, category: that the images were scored with.

    Returns:
        The content of metrics.json, apart from the names of model and data.
    """
    scored_as = main_category(pipe, scored)
    good, defective = scored.called_defective[~scored.is_defective], scored.called_defective[scored.is_defective]
    categories = Counter(name or UNKNOWN for name in scored.categories or ())
    scores = {"ensemble": measure(scored.maps, scored.image_scores, scored)}
    for name, weights in score_rows(scored.term_map_names).items():
        scores[name] = measure(*combine(pipe.calibration, scored, weights), scored)
    of_masks = {}
    if scored.masks is not None:
        of_masks = mask_metrics(scored.called_masks, scored.masks, scores["ensemble"]["pixel_f1_max"])
    return {
        "scores": scores,
        "map_size": "x".join(map(str, scored.maps.shape[1:])),
        "images": {"good": len(good), "defective": len(defective)},
        "operating_point": {
            "requested_false_alarm_rate": pipe.calibration.supported_rate(false_alarm_rate, scored_as),
            "held_out_normals": pipe.calibration.images_per_category[scored_as],
            "realised_false_alarm_rate": float(good.mean()),
            "detection_rate": float(defective.mean()),
            **of_masks,
        },
        "class_labels": {
            "given": category is not None,
            "images": dict(categories),
        },
        "recipe": {key: value for key, value in pipe.calibration.config.items() if not key.startswith("_")},
        "cost": {
            "images_per_second": images_per_second(pipe, scored.samples, category=category),
            "peak_memory_mib": peak_memory_mib(),
            "unet_parameters": sum(p.numel() for p in pipe.unet.parameters()),
            "threads": torch.get_num_threads(),
            "device": str(pipe.device),
        },
    }


def main_category(pipe: DiffADPipeline, scored: ScoredSamples) -> int:
    """Index of the category that most images were scored as; 0 where there is one, or all are of unknown products."""
    counts = Counter(name for name in scored.categories or () if name is not None)
    return pipe.category_names.index(counts.most_common(1)[0][0]) if counts else 0


def score_rows(term_map_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Weights of the term maps for each row besides the stored score ("ensemble"): the paper's Eq. 11, and every term alone."""

    def maps_of(term: str) -> list[str]:
        return [name for name in term_map_names if term_of(name) == term]

    rows = {}
    if maps_of("kl"):  # what an untrained diffusion model says is not measured
        rows["paper (Eq. 11)"] = {
            **{name: PAPER_ALPHA / len(maps_of("kl")) for name in maps_of("kl")},
            **{name: (1 - PAPER_ALPHA) / len(maps_of("feature")) for name in maps_of("feature")},
        }
    for term in dict.fromkeys(map(term_of, term_map_names)):
        rows[term] = {name: 1 / len(maps_of(term)) for name in maps_of(term)}
    for name in term_map_names:
        if "@" in name:
            rows[name] = {name: 1.0}
    return rows


def combine(calibration: Calibration, scored: ScoredSamples, weights: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum of term maps, `(N, height, width)`, and its image scores `(N,)`, in the model's region of interest."""
    total = np.zeros(scored.maps.shape, dtype=np.float32)
    for name, weight in weights.items():
        total += weight * scored.term_maps[:, scored.term_map_names.index(name)]
    maps = calibration.mask_outside(torch.from_numpy(total).to(calibration.device))
    return maps.cpu().numpy(), calibration.image_scores(maps).cpu().numpy()


def measure(maps: np.ndarray, image_scores: np.ndarray, scored: ScoredSamples) -> dict[str, float]:
    """Metrics of one score's maps `(N, height, width)` and image scores `(N,)`; those of pixels where there is a truth."""
    metrics = detection_metrics(image_scores, scored.is_defective)
    if scored.masks is not None:
        metrics.update(localization_metrics(maps, scored.masks))
    return metrics


def images_per_second(pipe: DiffADPipeline, samples: Sequence[Sample], count: int = 20, category: str | None = None) -> float:
    """Speed of scoring one image at a time with the stored score settings, from file to map at the image's size."""
    pipe(samples[0].read, categories=category)
    started = time.perf_counter()
    for i in range(count):
        pipe(samples[i % len(samples)].read, categories=category)
    return count / (time.perf_counter() - started)
