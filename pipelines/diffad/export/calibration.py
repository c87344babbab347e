"""Thresholds of an exported model in the runtime and precision that it is used in."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..imaging.array_maps import region_at
from ..imaging.image_statistics import Look, look_of
from ..imaging.preprocessing import ImageInput
from ..runtime.calibration import StoredCalibration
from ..runtime.description import POOLED_FEATURES, CalibrationScores
from ..runtime.detector import Detector
from ..runtime.reference_file import REFERENCE_FILE, read_tensors, tensors_of
from ..scoring.categories import Categories
from ..scoring.drawn_images import drawn_images
from ..scoring.reference_parts import ReferenceParts
from ..system.atomic import writing
from ..system.file_digest import file_digest


def calibrate_exported(
    folder: str | Path,
    images: Sequence[ImageInput],
    precision: str | None = None,
    categories: Categories | None = None,
    groups: Sequence[str] | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    threads: int | None = None,
) -> StoredCalibration:
    """Sets an exported model's thresholds for one precision from good images, and writes them into its folder.

    All images are behind the thresholds: the statistics that scores are formed with lie in the graph. The guarantee holds if
    none of them was trained on or is behind those statistics.

    Args:
        images: of good parts; of a model of several categories some of each.
        precision: `fp32`, `bf16` or `int8`; None is the graph's own.
        categories: of the images; None recognises them.
        groups: name of each image's group, such as the part that several images show; thresholds then count groups, each by
            its highest image.

    Raises:
        ValueError: if a score is not finite, or a category has no image.
        ExportError: as [`Detector`].
    """
    detector = Detector(folder, device, threads, precision)
    description = detector.description
    category_of, _ = detector.recognized(images, categories, batch_size)
    scores, maxima = np.empty(len(images)), np.empty(len(images))
    pooled: dict[int, np.ndarray] = {}
    looks: dict[int, Look] = {}
    for indices, originals, outputs in detector.scored(images, category_of, batch_size):
        if POOLED_FEATURES in outputs:
            pooled |= zip(indices, outputs[POOLED_FEATURES], strict=True)
            looks |= {index: look_of(image) for index, image in zip(indices, originals, strict=True)}
        scores[indices] = outputs["image_score"]
        inside = region_at(detector.region, outputs["anomaly_map"].shape[1:])
        maxima[indices] = [anomaly_map[inside].max() for anomaly_map in outputs["anomaly_map"]]
    if not (np.isfinite(scores).all() and np.isfinite(maxima).all()):
        raise ValueError(f"{folder}: scores in {detector.precision} are not finite; use another precision")
    of_image = np.zeros(len(images), dtype=int) if category_of is None else np.array(category_of)
    names = detector.category_names or [None]
    of_group = np.arange(len(images)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    of_categories, references = [], {}
    for index, name in enumerate(names):
        chosen = of_image == index
        if not chosen.any():
            raise ValueError(f"no image of category {name} to calibrate on")
        members = [np.flatnonzero(chosen & (of_group == group)) for group in np.unique(of_group[chosen])]
        highest = (sorted(values[member].max() for member in members) for values in (scores, maxima))
        drawn = drawn_images(members, description.score.seed)
        single = np.concatenate(members) if drawn is None else drawn
        single_scores = None if drawn is None else tuple(sorted(map(float, scores[single])))
        of_categories.append(CalibrationScores(*(tuple(map(float, values)) for values in highest), single_scores))
        if pooled:
            of_single = ReferenceParts.of(np.stack([pooled[i] for i in single]), [looks[i] for i in single])
            references[index] = of_single.sorted_by(scores[single])
    write_calibration(detector, of_categories, references)
    return StoredCalibration(description.score, of_categories, detector.region, references.get)


def write_calibration(
    detector: Detector, of_categories: Sequence[CalibrationScores], references: Mapping[int, ReferenceParts]
) -> None:
    """Replaces what an exported folder knows of calibration images in the detector's precision, or, if killed, nothing."""
    description, precision = detector.description, detector.precision
    calibrations = {**description.calibrations, precision: tuple(of_categories)}
    tensors, files = read_tensors(detector.folder, description), dict(description.files)
    tensors = {name: values for name, values in tensors.items() if not name.startswith(f"{precision}.")}
    tensors |= tensors_of(precision, references)
    with writing(detector.folder) as unfinished:
        if tensors:
            save_file(tensors, unfinished / REFERENCE_FILE)
            files[REFERENCE_FILE] = file_digest(unfinished / REFERENCE_FILE)
        dataclasses.replace(description, calibrations=calibrations, files=files).write(unfinished)
