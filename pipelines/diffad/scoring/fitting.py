"""Calibration in two passes over images that stream by: statistics from some, then the scores of the others under them."""

from collections.abc import Iterable, Sequence

import numpy as np

from ..imaging.preprocessing import ImageInput
from .calibration import Calibration
from .inputs import ImageBatch, InputReader
from .scorer import Scorer
from .statistics import TermStatistics, split_for_statistics


def fit_calibration(
    scorer: Scorer,
    reader: InputReader,
    images: Sequence[ImageInput],
    categories: Sequence[int] | None,
    batch_size: int,
    groups: Sequence[str] | None = None,
) -> None:
    """Fits the scorer's calibration; every image is scored once, and nothing of it but a few numbers is kept.

    Args:
        scorer: whose calibration is not fitted yet.
        reader: of the scorer.
        images: of good parts.
        categories: category index of each image, where there are several.
        batch_size: images or tiles per forward pass.
        groups: of each image, such as the part that it shows; None is a group for each. Images of one group resemble each
            other, so that thresholds count groups: each has the highest score of its images.

    Raises:
        ImageError: if an image can't be used.
        ValueError: if there are fewer than two groups (one where nothing is standardised by statistics) of a category, or a map
            is not finite.
    """
    calibration = scorer.calibration
    of_image = np.zeros(len(images), dtype=int) if categories is None else np.asarray(categories)
    names = None if categories is None else reader.category_names
    for_statistics, for_thresholds = split_calibration_images(calibration, of_image, groups, names)

    batches = reader.batches(images, categories, batch_size, for_statistics.tolist())
    for category, statistics in term_statistics(scorer, batches, batch_size).items():
        calibration.set_statistics(statistics, category)

    scores, maxima = np.empty(len(images)), np.empty(len(images))
    scored = np.concatenate([group for of_category in for_thresholds for group in of_category])
    for batch in reader.batches(images, categories, batch_size, scored.tolist()):
        score = scorer(batch.pixels, batch.category, tiles_per_pass=batch_size, detail=batch.detail)
        scores[batch.indices] = score.image_scores.cpu().numpy()
        maxima[batch.indices] = calibration.image_scores(score.anomaly_maps, top_k=1).cpu().numpy()
    of_groups = [
        [np.array([values[group].max() for group in of_category]) for of_category in for_thresholds]
        for values in (scores, maxima)
    ]
    calibration.set_scores(*of_groups)


def term_statistics(scorer: Scorer, batches: Iterable[ImageBatch], batch_size: int) -> dict[int, TermStatistics]:
    """Statistics of the scorer's terms on good images, by category; 0 where there is one."""
    statistics: dict[int, list[TermStatistics]] = {}
    for batch in batches:
        raw = scorer.raw_term_maps(batch.pixels, batch.category, tiles_per_pass=batch_size, detail=batch.detail)
        inside = scorer.calibration.inside(batch.pixels.shape[-2:])
        for i in range(len(batch.indices)):
            of_image = TermStatistics.of({name: maps[i] for name, maps in raw.items()}, inside, scorer.config)
            statistics.setdefault(batch.category or 0, []).append(of_image)
    return {category: TermStatistics.sum(of_images) for category, of_images in statistics.items()}


def split_calibration_images(
    calibration: Calibration,
    of_image: np.ndarray,
    groups: Sequence[str] | None = None,
    category_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Which calibration images give the statistics, and which the thresholds: whole groups, by the calibration's settings.

    Args:
        calibration: whose settings count; its statistics don't.
        of_image: `(n,)` category index of each image.
        groups: as of [`fit_calibration`].
        category_names: of several categories, for errors.

    Returns:
        Indices of the images of the statistics, and for each category the indices of each group behind the thresholds.

    Raises:
        ValueError: as [`fit_calibration`].
    """
    if groups is not None and len(groups) != len(of_image):
        raise ValueError(f"{len(groups)} groups for {len(of_image)} images: give one per image")
    config = calibration.score_config
    needs_statistics = config.needs_statistics
    of_group = np.arange(len(of_image)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    for_statistics: list[int] = []
    for_thresholds: list[list[np.ndarray]] = []
    for category in range(len(calibration.images_per_category)):
        chosen = np.flatnonzero(of_image == category)
        members = np.unique(of_group[chosen])
        if len(members) < 1 + needs_statistics:
            counted = "good images" if groups is None else "groups of good images"
            of_category = "" if category_names is None else f" of {category_names[category]}"
            raise ValueError(f"calibration needs at least {1 + needs_statistics} {counted}{of_category}, got {len(members)}")
        if needs_statistics:
            of_statistics, members = split_for_statistics(members, config.seed, config.statistics_share)
            for_statistics += chosen[np.isin(of_group[chosen], of_statistics)].tolist()
        for_thresholds.append([chosen[of_group[chosen] == member] for member in members])
    return np.array(for_statistics, dtype=int), for_thresholds
