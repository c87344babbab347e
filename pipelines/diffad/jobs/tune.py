"""Tunes a pipeline's score by a few defective images: terms, weights and pooling.

Good images take part as those behind the statistics of the score do. The ones behind the thresholds are not looked at before
everything is chosen, so that a good part exceeds these with the promised probability, as before.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..data import DataError, Sample
from ..data.files import file_sample
from ..data.ground_truth import MaskFolder, check_masks, refuse_shared_masks
from ..evaluation.measured_terms import GoodImages, MeasuredTerms, measure
from ..evaluation.tuning import AREAS, ScoreCandidate, ScoreChoice, candidates, choose, detection_worth, localization_worth
from ..pipeline_diffad import DiffADPipeline
from ..scoring import terms
from ..scoring.config import SCALE_TERMS
from ..scoring.statistics import drawn_mean_and_std
from .folders import image_names

LEAST_DEFECTS = 3
DEFECT = "defect"


class Tuning(NamedTuple):
    """What was chosen.

    Args:
        anomaly_map, verdict: their terms and weights, of the verdict the area too.
        good_images, defects: how many images chose.
        has_masks: whether the map was judged by masks.
    """

    anomaly_map: ScoreChoice
    verdict: ScoreChoice
    good_images: int
    defects: int
    has_masks: bool

    @property
    def is_changed(self) -> bool:
        return self.anomaly_map.is_changed or self.verdict.is_changed


def defect_samples(folder: Path, masks: Path | None = None) -> list[Sample]:
    """All images below a folder as defective ones.

    Args:
        masks: folder of a mask for each, named like its image.

    Raises:
        DataError: if there are fewer than 3 images, a mask is missing, or one belongs to several images.
        ImageError: if a mask can't be used.
    """
    paths = [folder / name for name in image_names(folder, () if masks is None else (masks,))]
    if len(paths) < LEAST_DEFECTS:
        raise DataError(f"{folder}: {len(paths)} defective image(s), and tuning needs {LEAST_DEFECTS} at least")
    if masks is None:
        return [file_sample(path, folder, DEFECT) for path in paths]
    if not masks.is_dir():
        raise DataError(f"{masks}: no such folder of masks")
    find = MaskFolder(folder, masks).find
    pairs = [(path, find(path)) for path in paths]
    refuse_shared_masks((path.relative_to(folder).as_posix(), files) for path, files in pairs)
    if bare := [path for path, files in pairs if not files]:
        raise DataError(f"{bare[0]}: no mask in {masks}; add it, or tune without masks, by the images alone")
    samples = [file_sample(path, folder, DEFECT, files) for path, files in pairs]
    check_masks(samples, folder)
    return samples


@torch.no_grad()
def tune(pipe: DiffADPipeline, good: GoodImages, defects: Sequence[Sample], batch_size: int = 8) -> Tuning:
    """Chooses terms, weights and pooling of a pipeline's score by defective images, and calibrates it if that gains.

    Args:
        pipe: changed in place; where nothing is gained it stays as it is.
        good: as it was calibrated with; some of them choose, the others give the thresholds.
        defects: 3 at least; all have masks, or none has.

    Raises:
        ImageError, DataError: if an image or a mask can't be used.
        ValueError: if the score is of a kind that can't be tuned, or there are too few good images.
    """
    present = pipe.calibration.score_config
    measured = measure(pipe, good, defects, AREAS, batch_size)
    tuning = choose_score(measured, ScoreCandidate(present.weights, present.verdict_area), present.verdict)
    if tuning.is_changed:
        weights, verdict = tuning.anomaly_map.chosen.weights, tuning.verdict.chosen.weights
        scales = tuple(scale for scale in SCALE_TERMS if scale in {*weights, *verdict})
        pipe.calibrate(
            good.images,
            batch_size,
            categories=good.categories,
            groups=good.groups,
            weights=weights,
            verdict=verdict,
            verdict_area=tuning.verdict.chosen.area,
            scales=scales,
        )
    return tuning


def choose_score(measured: MeasuredTerms, anomaly_map: ScoreCandidate, verdict: Mapping[str, float]) -> Tuning:
    """Chooses map and verdict by what was measured.

    Args:
        anomaly_map: the present weights of the map, and the area of the verdict.
        verdict: present weights of the verdict.
    """
    tried = list(measured.maps)
    defects = len(next(iter(measured.maps.values()))) - measured.count
    return Tuning(
        choose(candidates(anomaly_map, tried), lambda candidate: map_worth(measured, candidate)),
        choose(
            candidates(ScoreCandidate(verdict, anomaly_map.area), tried, AREAS),
            lambda candidate: verdict_worth(measured, candidate),
        ),
        measured.count,
        defects,
        measured.masks is not None,
    )


def map_worth(measured: MeasuredTerms, candidate: ScoreCandidate) -> np.ndarray:
    """Worth of an anomaly map: `(N,)` by masks, else `(N, G)` by the mean of each image's highest pixels."""
    fused = sum(weight * measured.maps[term] for term, weight in candidate.shares.items())
    good, defective = fused[: measured.count], fused[measured.count :]
    if measured.masks is not None:
        good_pixels = np.sort(good, axis=None)
        return np.array([localization_worth(*of_image, good_pixels) for of_image in zip(defective, measured.masks)])
    pixels = max(1, round(candidate.area * fused[0].size))
    highest = np.partition(fused.reshape(len(fused), -1), -pixels, axis=1)[:, -pixels:].mean(axis=1)
    (mean,), (std,) = drawn_mean_and_std(highest[None, : measured.count])
    standardized = (highest - mean) / max(std, 1e-12)
    return detection_worth(standardized[measured.count :], standardized[: measured.count])


def verdict_worth(measured: MeasuredTerms, candidate: ScoreCandidate) -> np.ndarray:
    """Worth `(N, G)` of a verdict."""
    standardized = {term: torch.from_numpy(measured.highest[term, candidate.area]) for term in candidate.weights}
    scores = terms.weighted_mean(standardized, candidate.weights).numpy()
    return detection_worth(scores[measured.count :], scores[: measured.count])
