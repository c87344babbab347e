"""Calibration in two passes over images that stream by: statistics from some, then the scores of the others under them."""

from collections.abc import Sequence

import numpy as np
import torch

from ..imaging.preprocessing import ImageInput
from .calibration import TermStatistics, split_for_statistics
from .inputs import InputReader
from .scorer import Scorer


def fit_calibration(
    scorer: Scorer, reader: InputReader, images: Sequence[ImageInput], categories: Sequence[int] | None, batch_size: int
) -> None:
    """Fits the scorer's calibration; every image is scored once, and nothing of it but a few numbers is kept.

    Args:
        scorer: whose calibration is not fitted yet.
        reader: of the scorer.
        images: of good parts.
        categories: category index of each image, where there are several.
        batch_size: images or tiles per forward pass.

    Raises:
        ImageError: if an image can't be used.
        ValueError: if there are fewer than two images (one where nothing is standardised by statistics) of a category, or a map
            is not finite.
    """
    calibration = scorer.calibration
    needs_statistics = bool(scorer.config.standardized_terms) and not scorer.config.per_image
    of_image = np.zeros(len(images), dtype=int) if categories is None else np.asarray(categories)
    for_statistics: list[int] = []
    for_thresholds: list[np.ndarray] = []  # of each category
    for category in range(len(calibration.images_per_category)):
        chosen = np.flatnonzero(of_image == category)
        if len(chosen) < 1 + needs_statistics:
            of_category = "" if categories is None else f" of {reader.category_names[category]}"
            raise ValueError(f"calibration needs at least {1 + needs_statistics} good images{of_category}, got {len(chosen)}")
        if needs_statistics:
            of_statistics, chosen = split_for_statistics(chosen, scorer.config.seed)
            for_statistics += of_statistics.tolist()
        for_thresholds.append(chosen)

    statistics: dict[int, TermStatistics] = {}
    for batch in reader.batches(images, categories, batch_size, for_statistics):
        raw = scorer.raw_term_maps(batch.pixels, batch.category, tiles_per_pass=batch_size)
        stacked = torch.stack([raw[name] for name in scorer.config.term_map_names], dim=1)  # (B, M, H, W)
        inside = calibration.inside(stacked.shape[-2:])
        for index, maps in zip(batch.indices, stacked, strict=True):
            of_one, category = TermStatistics.of(maps, inside), int(of_image[index])
            statistics[category] = statistics[category] + of_one if category in statistics else of_one
    for category, of_category in statistics.items():
        calibration.set_statistics(of_category, category)

    scores, maxima = np.empty(len(images)), np.empty(len(images))
    for batch in reader.batches(images, categories, batch_size, np.concatenate(for_thresholds).tolist()):
        score = scorer(batch.pixels, batch.category, tiles_per_pass=batch_size)
        scores[batch.indices] = score.image_scores.cpu().numpy()
        maxima[batch.indices] = calibration.image_scores(score.anomaly_maps, top_k=1).cpu().numpy()
    calibration.set_scores([scores[chosen] for chosen in for_thresholds], [maxima[chosen] for chosen in for_thresholds])
