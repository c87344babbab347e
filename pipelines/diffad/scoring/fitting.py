"""Calibration in two passes over images that stream by: statistics from some, then the scores of the others under them."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import numpy as np

from ..imaging.image_statistics import Look, look_of
from ..imaging.preprocessing import ImageInput
from .calibration import Calibration
from .config import SCALE_TERMS, ScoreConfig
from .drawn_images import drawn_images
from .inputs import ImageBatch, InputReader
from .reference_parts import ReferenceParts
from .scorer import Scorer
from .statistics import TermStatistics, split_for_statistics


def fit_calibrations(
    calibrations: Sequence[Calibration],
    make_scorer: Callable[[Calibration], Scorer],
    reader: InputReader,
    images: Sequence[ImageInput],
    categories: Sequence[int] | None,
    batch_size: int,
    groups: Sequence[str] | None = None,
) -> None:
    """Fits several calibrations of one model, in one go those that need the same term maps.

    Args:
        calibrations: not fitted yet.
        make_scorer: makes the scorer of a calibration.
        reader: of the images; its scorer is replaced.
        images, categories, batch_size, groups: as of [`fit_calibration`], which names the errors, too.
    """
    together: dict[str, list[Calibration]] = {}
    for calibration in calibrations:
        together.setdefault(_what_maps_depend_on(calibration.score_config), []).append(calibration)
    for first, *others in together.values():
        scales = {scale for calibration in (first, *others) for scale in calibration.config.scales}
        # Only a calibration of all scales looks at all of them; its own score is not asked for.
        widest = first.unfitted(scales=tuple(s for s in SCALE_TERMS if s in scales)) if others else first
        scorer = make_scorer(widest)
        of_scorer = InputReader(scorer, reader.discriminant, reader.device)
        fit_calibration(scorer, of_scorer, images, categories, batch_size, groups, (first, *others))


def fit_calibration(
    scorer: Scorer,
    reader: InputReader,
    images: Sequence[ImageInput],
    categories: Sequence[int] | None,
    batch_size: int,
    groups: Sequence[str] | None = None,
    calibrations: Sequence[Calibration] | None = None,
) -> None:
    """Fits the scorer's calibration; every image is measured once, and nothing of it is kept but
    numbers: scores, pooled features and statistics, and the mean of small grey pictures of all.

    Args:
        scorer: whose calibration is not fitted yet.
        reader: of the scorer.
        images: of good parts.
        categories: category index of each image, where there are several.
        batch_size: images or tiles per forward pass.
        groups: of each image, such as the part that it shows; None is a group for each. Images of one group resemble each
            other, so that thresholds count groups: each has the highest score of its images.
        calibrations: that are fitted in place of the scorer's own: of the same term maps, or fewer, and the same split.

    Raises:
        ImageError: if an image can't be used.
        ValueError: if there are fewer than two groups (one where nothing is standardised by statistics) of a category, or a map
            is not finite.
    """
    calibrations = calibrations or (scorer.calibration,)
    of_image = np.zeros(len(images), dtype=int) if categories is None else np.asarray(categories)
    names = None if categories is None else reader.category_names
    for_statistics, for_thresholds = split_calibration_images(calibrations[0], of_image, groups, names)

    batches = reader.batches(images, categories, batch_size, for_statistics.tolist())
    for calibration, of_categories in zip(calibrations, _statistics(scorer, calibrations, batches, batch_size), strict=True):
        for category, statistics in of_categories.items():
            calibration.set_statistics(statistics, category)

    terms = [term for term in scorer.config.all_terms if any(term in one.score_config.terms for one in calibrations)]
    results = np.empty((len(calibrations), 2, len(images)))  # score and highest pixel of each image
    pooled: dict[int, np.ndarray] = {}
    looks: dict[int, Look] = {}
    scored = np.concatenate([group for of_category in for_thresholds for group in of_category])
    for batch in reader.batches(images, categories, batch_size, scored.tolist()):
        raw, features = scorer.measure(batch.pixels, batch.category, terms, batch_size, batch.detail)
        for of_one, calibration in zip(results, calibrations, strict=True):
            anomaly_maps = calibration.anomaly_maps(raw, batch.category)
            of_one[0, batch.indices] = calibration.scores(raw, anomaly_maps, batch.category).cpu().numpy()
            of_one[1, batch.indices] = calibration.image_scores(anomaly_maps, top_k=1).cpu().numpy()
        if features is not None:
            pooled |= zip(batch.indices, features.float().cpu().numpy(), strict=True)
            looks |= {index: look_of(image) for index, image in zip(batch.indices, batch.originals, strict=True)}
    seed = calibrations[0].score_config.seed
    drawn = [drawn_images(of_category, seed) for of_category in for_thresholds]
    by_groups = any(of_category is not None for of_category in drawn)
    single = [np.concatenate(g) if d is None else d for d, g in zip(drawn, for_thresholds, strict=True)]  # image of each group
    for of_one, calibration in zip(results, calibrations, strict=True):
        of_groups = [
            [np.array([values[group].max() for group in of_category]) for of_category in for_thresholds] for values in of_one
        ]
        references = None
        if pooled and calibration.score_config.sees_features:
            references = [ReferenceParts.of(np.stack([pooled[i] for i in s]), [looks[i] for i in s]) for s in single]
        single_scores = [of_one[0, of_category] for of_category in single] if by_groups else None
        calibration.set_scores(*of_groups, references, single_scores)


def term_statistics(scorer: Scorer, batches: Iterable[ImageBatch], batch_size: int) -> dict[int, TermStatistics]:
    """Statistics of the scorer's terms on good images, by category; 0 where there is one."""
    return _statistics(scorer, (scorer.calibration,), batches, batch_size)[0]


def _statistics(
    scorer: Scorer, calibrations: Sequence[Calibration], batches: Iterable[ImageBatch], batch_size: int
) -> list[dict[int, TermStatistics]]:
    """For each calibration the statistics of its terms on good images, by category."""
    statistics: list[dict[int, list[TermStatistics]]] = [{} for _ in calibrations]
    for batch in batches:
        raw = scorer.raw_term_maps(batch.pixels, batch.category, tiles_per_pass=batch_size, detail=batch.detail)
        for of_one, calibration in zip(statistics, calibrations, strict=True):
            inside = calibration.inside(batch.pixels.shape[-2:])
            for i in range(len(batch.indices)):
                of_image = {name: maps[i] for name, maps in raw.items()}
                of_one.setdefault(batch.category or 0, []).append(TermStatistics.of(of_image, inside, calibration.score_config))
    return [{category: TermStatistics.sum(of_images) for category, of_images in of_one.items()} for of_one in statistics]


def _what_maps_depend_on(config: ScoreConfig) -> str:
    """All settings of a score but which terms it weighs and how it pools them: those of its term maps, and of the split."""
    settings = {**asdict(config), "needs_statistics": config.needs_statistics}
    for name in ("weights", "verdict", "verdict_area", "scales", "top_k", "mask_edge"):
        del settings[name]
    return json.dumps(settings, sort_keys=True)


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
