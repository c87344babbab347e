"""A labelled test set scored by a pipeline: its truth, its scores, and its maps in files, so that memory stays flat."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..data import Sample, load_mask
from ..pipeline_diffad import DiffADPipeline
from ..scoring.config import term_of
from ..scoring.tiling import working_size

PROTOCOL_MAP_SIZE = (256, 256)  # of published figures
# Maps of tiled models are made smaller where all of them have more pixels: they lie on the disk once for every score term. The
# protocol's maps of 600 images are as many.
MAX_MAP_PIXELS = 40_000_000


@dataclass
class ScoredSamples:
    """N test images, what is known of them, and what a pipeline says.

    Args:
        samples: the images.
        is_defective: `(N,)` bool, True for defective ones.
        masks: `(N, height, width)` bool truth, or None where the data has no masks.
        term_map_names: score terms at their timesteps, in the order of `term_maps`.
        term_maps: `(N, len(term_map_names), height, width)` standardised, memory-mapped.
        maps: `(N, height, width)` anomaly maps of the stored score settings, memory-mapped.
        image_scores, p_values: `(N,)` of the stored score settings.
        called_defective: `(N,)` bool, the verdicts.
        false_alarm_rates: `(N,)`, that the verdicts are for.
        pixel_thresholds: `(N,)`, that a defect's peak in each image is above.
        called_masks: `(N, height, width)` bool, the pixels called defective, memory-mapped.
        categories: category of each image, given or recognised, of a model of several categories; None for unknown products.
    """

    samples: Sequence[Sample]
    is_defective: np.ndarray
    masks: np.ndarray | None
    term_map_names: list[str]
    term_maps: np.ndarray
    maps: np.ndarray
    image_scores: np.ndarray
    p_values: np.ndarray
    called_defective: np.ndarray
    false_alarm_rates: np.ndarray
    pixel_thresholds: np.ndarray
    called_masks: np.ndarray
    categories: list[str | None] | None = None


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
    """Decodes every image and mask, and returns masks `(N, *map_size)`, or None if the defective images have none.

    Raises:
        ImageError, DataError: naming the first image or mask that can't be used.
    """
    with_masks = any(sample.mask for sample in samples)
    for sample in samples:
        if not (with_masks and sample.is_defective):  # else it is read with its mask
            sample.read()
    if not with_masks:
        return None
    return np.stack([load_mask(sample, map_size) for sample in samples])


def score_samples(
    pipe: DiffADPipeline,
    samples: Sequence[Sample],
    masks: np.ndarray | None,
    map_size: tuple[int, int],
    scratch: Path,
    batch_size: int = 8,
    false_alarm_rate: float | None = None,
    category: str | None = None,
) -> ScoredSamples:
    """Scores all samples in this process.

    Args:
        masks: of [`read_truth`].
        map_size: `(height, width)` of all maps.
        scratch: folder for files of maps, which are needed as long as the result is.
        batch_size: images per forward pass; memory grows with it only.
        false_alarm_rate, category: as for scoring.
    """
    batches = score_batches(pipe, samples, map_size, batch_size, false_alarm_rate, category)
    return gather(batches, pipe, samples, masks, map_size, scratch)


def score_batches(
    pipe: DiffADPipeline,
    samples: Sequence[Sample],
    map_size: tuple[int, int],
    batch_size: int,
    false_alarm_rate: float | None,
    category: str | None,
) -> Iterator[dict[str, np.ndarray]]:
    """What a pipeline says of each batch of samples: arrays by the names of [`ScoredSamples`], with a row for each of them.

    `categories` is there for a model of several only, with empty text for unknown products.
    """
    names = measurable_maps(pipe)
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(samples), batch_size):
        output = pipe(
            [sample.read for sample in samples[start : start + batch_size]],
            batch_size=batch_size,
            categories=category,
            false_alarm_rate=false_alarm_rate,
            map_size=map_size,
            return_term_maps=True,
        )
        said = {
            "image_scores": output.image_scores,
            "p_values": output.p_values,
            "called_defective": output.is_defective,
            "false_alarm_rates": output.false_alarm_rates,
            "pixel_thresholds": output.pixel_thresholds,
            "maps": np.stack(output.anomaly_maps),
            "called_masks": np.stack(output.masks),
            "term_maps": np.stack([[of_image[name] for name in names] for of_image in output.term_maps]),
        }
        if output.categories is not None:
            said["categories"] = np.array([name or "" for name in output.categories])
        yield said


def measurable_maps(pipe: DiffADPipeline) -> list[str]:
    """Score terms at their timesteps, of those that the pipeline can measure."""
    measurable = pipe.scorer.measurable_terms
    return [name for name in pipe.calibration.term_map_names if term_of(name) in measurable]


def gather(
    batches: Iterable[dict[str, np.ndarray]],
    pipe: DiffADPipeline,
    samples: Sequence[Sample],
    masks: np.ndarray | None,
    map_size: tuple[int, int],
    scratch: Path,
) -> ScoredSamples:
    """Puts batches together, in the order of the samples, whoever has scored them: with all maps at hand metrics are exact.

    Args:
        batches: of [`score_batches`], of all samples; of any sizes.
        masks, map_size, scratch: of [`score_samples`].
    """
    names, count = measurable_maps(pipe), len(samples)
    arrays = {
        "term_maps": _new_array(scratch / "term_maps.npy", (count, len(names), *map_size)),
        "maps": _new_array(scratch / "maps.npy", (count, *map_size)),
        "called_masks": _new_array(scratch / "called_masks.npy", (count, *map_size), bool),
    }
    others: dict[str, list[np.ndarray]] = {}
    start = 0
    with tqdm(total=count, desc="scoring", unit="image", mininterval=2, disable=None) as progress:
        for batch in batches:
            stop = start + len(batch["image_scores"])
            for name, values in batch.items():
                if name in arrays:
                    arrays[name][start:stop] = values
                else:
                    others.setdefault(name, []).append(values)
            progress.update(stop - start)
            start = stop
    if start < count:
        raise RuntimeError(f"{start} of {count} images were scored")
    joined = {name: np.concatenate(values) for name, values in others.items()}
    categories = joined.pop("categories", None)
    return ScoredSamples(
        samples=samples,
        is_defective=np.array([sample.is_defective for sample in samples]),
        masks=masks,
        term_map_names=names,
        categories=None if categories is None else [name or None for name in categories.tolist()],
        **arrays,
        **joined,
    )


def _new_array(path: Path, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
