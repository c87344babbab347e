"""What the terms of a score make of good and of defective images, at a few areas and in small maps: all that tuning needs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data import DataError, Sample, load_mask
from ..imaging.maps import resize_map
from ..imaging.preprocessing import ImageInput
from ..pipeline_diffad import DiffADPipeline
from ..scoring import terms
from ..scoring.config import DETAIL_TERMS, TERMS, pixels_of
from ..scoring.fitting import split_calibration_images, term_statistics
from ..scoring.inputs import ImageBatch, InputReader
from ..scoring.scorer import Scorer
from ..scoring.statistics import drawn_mean_and_std
from ..scoring.tails import Tail, decades
from .scored_samples import default_map_size

SHRINKAGE = 2  # of the maps: a quarter of the pixels, and a metric sorts them all


class GoodImages(NamedTuple):
    """Good images that a model was not trained on, as [`~diffad.DiffADPipeline.calibrate`] takes them."""

    images: Sequence[ImageInput]
    categories: Sequence[str | int] | None = None
    groups: Sequence[str] | None = None


@dataclass(frozen=True)
class MeasuredTerms:
    """What the terms make of G good and N defective images.

    Args:
        maps: `(G + N, h, w)` in decades by term, 0 outside the region of interest.
        highest: `(G + N,)` by term and area, the mean of the highest pixels, standardised by the good images of the category.
        masks: `(N, h, w)` bool, or None.
        count: G.
    """

    maps: Mapping[str, np.ndarray]
    highest: Mapping[tuple[str, float], np.ndarray]
    masks: np.ndarray | None
    count: int


@torch.no_grad()
def measure(
    pipe: DiffADPipeline, good: GoodImages, defects: Sequence[Sample], areas: Sequence[float], batch_size: int = 8
) -> MeasuredTerms:
    """Measures all terms of a model on the good images behind the score's statistics, and on defective images.

    Args:
        good: as the model is calibrated with; those behind the thresholds are not measured.
        defects: all with masks, or none.
        areas: shares of the pixels that are a term's highest, besides the present one.

    Raises:
        ImageError, DataError: if an image or a mask can't be used.
        ValueError: if the score is of a kind that can't be tuned, or there are too few good images.
    """
    scorer = scorer_of_all_terms(pipe)
    calibration, reader = scorer.calibration, InputReader(scorer, pipe.discriminant, scorer.noise.device)
    of_good, _ = reader.categories(good.images, good.categories, batch_size)
    of_defects, _ = reader.categories([sample.read for sample in defects], None, batch_size)
    of_image = np.array([0] * len(good.images) if of_good is None else of_good)
    chosen, _ = split_calibration_images(calibration, of_image, good.groups, reader.category_names)
    images = [*(good.images[i] for i in chosen), *(sample.read for sample in defects)]
    categories = None if of_good is None else [*of_image[chosen].tolist(), *of_defects]

    short_side = scorer.config.short_side
    full = scorer.image_size if short_side is None else default_map_size(defects, short_side)
    size = tuple(max(1, side // SHRINKAGE) for side in full)
    masks = read_masks(defects, size, calibration.inside(size).cpu().numpy()) if defects[0].mask is not None else None
    tails = _tails(scorer, _batches(reader, images, categories, batch_size, range(len(chosen))), batch_size)

    areas = dict.fromkeys([scorer.config.verdict_area, *areas])
    maps = {term: np.zeros((len(images), *size), np.float32) for term in scorer.config.terms}
    highest = {(term, area): np.zeros(len(images)) for term in maps for area in areas}
    for batch in _batches(reader, images, categories, batch_size, range(len(images))):
        raw = scorer.raw_term_maps(batch.pixels, batch.category, tiles_per_pass=batch_size, detail=batch.detail)
        inside = calibration.inside(batch.pixels.shape[-2:])
        for term, values in terms.mean_over_timesteps(raw).items():
            in_decades = inside * decades(values, tails[batch.category or 0][term])
            maps[term][batch.indices] = resize_map(in_decades, size).cpu().numpy()
            for area in areas:
                of_area = calibration.image_scores(values, pixels_of(area, int(inside.sum())))
                highest[term, area][batch.indices] = of_area.cpu().numpy()
    of_image = np.zeros(len(images), int) if categories is None else np.asarray(categories)
    for values in highest.values():
        _standardize(values, of_image, len(chosen))
    return MeasuredTerms(maps, highest, masks, len(chosen))


def scorer_of_all_terms(pipe: DiffADPipeline) -> Scorer:
    """A pipeline's scorer with every term that its model has, not calibrated.

    Raises:
        ValueError: if its score is not of tail probabilities with a verdict.
    """
    present = pipe.calibration.score_config
    if present.fusion != "tails" or not present.verdict:
        raise ValueError(
            "only a score of tail probabilities with a verdict of its own can be tuned: fit the model anew with "
            "training/refit.py"
        )
    scales = pipe.scales
    if present.short_side is not None:
        scales = tuple(scale for scale in scales if scale not in DETAIL_TERMS)
    weights = dict.fromkeys([*TERMS, *scales], 1.0)
    calibration = pipe.calibration.unfitted(weights=weights, verdict=weights, scales=scales)
    calibration.set_roi(pipe.calibration.roi)
    return pipe.make_scorer(calibration)


def read_masks(defects: Sequence[Sample], size: tuple[int, int], inside: np.ndarray) -> np.ndarray:
    """Masks `(N, *size)` of defective images, as far as they lie inside the region of interest, bool `size`.

    Raises:
        DataError: if nothing is left of one.
    """
    masks = np.stack([load_mask(sample, size) for sample in defects]) & inside
    for sample, mask in zip(defects, masks, strict=True):
        if not mask.any():
            raise DataError(f"{sample.mask.name}: marks nothing (in the region of interest); leave {sample.name} out")
    return masks


def _tails(scorer: Scorer, batches: Iterator[ImageBatch], batch_size: int) -> dict[int, dict[str, Tail]]:
    """Tails of every term by category."""
    names, device = scorer.config.map_terms, scorer.noise.device
    return {
        category: {
            term: Tail(*(torch.from_numpy(values[k : k + 1]).float().to(device) for values in statistics.tail))
            for k, term in enumerate(names)
        }
        for category, statistics in term_statistics(scorer, batches, batch_size).items()
    }


def _standardize(values: np.ndarray, of_image: np.ndarray, count: int) -> None:
    """Standardises `(G + N,)` by the first `count`, the good images, of the same category."""
    for category in np.unique(of_image):
        chosen = of_image == category
        (mean,), (std,) = drawn_mean_and_std(values[:count][chosen[:count]][None])
        values[chosen] = (values[chosen] - mean) / max(std, 1e-12)


def _batches(
    reader: InputReader,
    images: Sequence[ImageInput],
    categories: Sequence[int] | None,
    batch_size: int,
    chosen: Sequence[int],
) -> Iterator[ImageBatch]:
    return tqdm(reader.batches(images, categories, batch_size, chosen), desc="measuring", mininterval=2, disable=None)
