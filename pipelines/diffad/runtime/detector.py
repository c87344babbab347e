"""Scores images with an exported model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..imaging.array_maps import resize_array
from ..imaging.preprocessing import ImageInput, as_image_list, load_rgb, resize_rgb
from ..scoring.arguments import check_arguments
from ..scoring.categories import Categories, category_indices, names_of
from ..scoring.tiling import add_tiles, blend_weights, scored_size, tile_corners
from .calibration import StoredCalibration
from .description import POOLED_FEATURES, TERM_MAP, DetectorDescription, ExportError
from .engines import build_engine
from .fusion import fuse
from .reference_file import read_reference_parts


@dataclass
class Detections:
    """Verdicts on N images; the fields are those of [`DiffADOutput`], as arrays."""

    image_scores: np.ndarray
    p_values: np.ndarray
    is_defective: np.ndarray
    anomaly_maps: list[np.ndarray]
    masks: list[np.ndarray]
    false_alarm_rates: np.ndarray
    image_thresholds: np.ndarray
    pixel_thresholds: np.ndarray
    term_maps: list[dict[str, np.ndarray]] | None = None
    categories: list[str | None] | None = None
    pooled_features: np.ndarray | None = None


class Detector:
    """An exported model: images in, verdicts out, as from the pipeline that it was exported from.

    Nothing in it changes after construction, so that threads can share it.

    Args:
        folder: that `diffad export` wrote.
        device: `cpu`, or another that the runtime knows.
        threads: of one inference; None is all cores.
        precision: in which the runtime computes: `fp32` (the default of a graph that holds floats), `int8` (of a graph that was
            exported so, its default), or `bf16` (OpenVINO, on CPUs and GPUs that have it; of an int8 graph all else than the
            diffusion models). Thresholds belong to a precision.

    Raises:
        ExportError: if the folder is no exported model or damaged, or the precision is not calibrated.
        ModuleNotFoundError: naming the runtime's package where it is not installed.
        ValueError: if an argument can't be used.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", threads: int | None = None, precision: str | None = None):
        self.folder = Path(folder)
        self.description = description = DetectorDescription.read(self.folder)
        self.precision = precision = description.weights if precision is None else precision
        if precision not in description.precisions:
            raise ValueError(
                f"{folder}: computes in {' or '.join(description.precisions)} ({description.runtime}, {description.weights} "
                f"weights), not in {precision}"
            )
        self.region = description.read_region(self.folder)
        of_categories = description.calibrations.get(precision)
        references = partial(read_reference_parts, self.folder, description, precision)
        self._calibration = of_categories and StoredCalibration(description.score, of_categories, self.region, references)
        settings = (device, threads, precision)
        self._score = build_engine(description.runtime, self.folder / description.graph, *settings)
        graph = description.category_graph
        # Categories are told apart in the precision that they were calibrated in.
        self._recognize = graph and build_engine(description.runtime, self.folder / graph, device, threads, description.weights)

    @property
    def calibration(self) -> StoredCalibration:
        """Thresholds and p-values in the detector's precision.

        Raises:
            ExportError: if there are none: they differ between precisions.
        """
        if self._calibration is None:
            raise ExportError(
                f"{self.folder}: not calibrated in {self.precision}; run: diffad calibrate {self.folder} GOOD_IMAGES "
                f"--precision {self.precision}"
            )
        return self._calibration

    @property
    def category_names(self) -> list[str] | None:
        """Categories of a model of several, in the order of their indices."""
        return None if self.description.category_names is None else list(self.description.category_names)

    @property
    def digest(self) -> str:
        """Tells whether two detectors give the same results."""
        return f"{self.description.model} {self.description.runtime} {self.precision}"

    def category_indices(self, categories: Categories | None, count: int) -> list[int] | None:
        """Category index of each of `count` images from names or indices; see `diffad.scoring.categories`."""
        return category_indices(categories, self.category_names, count)

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 8,
        categories: Categories | None = None,
        false_alarm_rate: float | None = None,
        map_size: tuple[int, int] | None = None,
        return_term_maps: bool = False,
        return_features: bool = False,
    ) -> Detections:
        """Scores images; arguments and errors are those of [`DiffADPipeline.__call__`].

        Args:
            return_term_maps: of a model that was exported with `term_maps`.
            return_features: the graphs of earlier releases have none, and None comes in their place.

        Raises:
            ExportError: if the precision is not calibrated.
        """
        images, calibration = as_image_list(images), self.calibration
        check_arguments(images, batch_size, map_size)
        if return_term_maps and not self.description.term_maps:
            raise ValueError(f"{self.folder}: has no term maps; export the model with --term_maps")
        category_of, unknown = self.recognized(images, categories, batch_size)
        rates = calibration.rates(false_alarm_rate, category_of, len(images))
        scores = np.empty(len(images), dtype=np.float32)
        maps: list = [None] * len(images)
        term_maps: list[dict[str, np.ndarray]] = [{} for _ in images]
        pooled: list = [None] * len(images)
        for indices, originals, outputs in self.scored(images, category_of, batch_size):
            scores[indices] = outputs.pop("image_score")
            for i, index in enumerate(indices):
                if return_features and POOLED_FEATURES in outputs:
                    pooled[index] = outputs[POOLED_FEATURES][i].copy()  # not a view that keeps the batch
                size = map_size or (originals[i].height, originals[i].width)
                maps[index] = resize_array(outputs["anomaly_map"][i], size)
                for name in self.description.term_maps if return_term_maps else ():
                    term_maps[index][name] = resize_array(outputs[TERM_MAP + name][i], size)
        verdicts = calibration.judge(scores, maps, rates, category_of, unknown)
        names = None if category_of is None else names_of(category_of, unknown, self.category_names)
        maps_of_terms = term_maps if return_term_maps else None
        features = None if pooled[0] is None else np.stack(pooled)
        further = {"term_maps": maps_of_terms, "categories": names, "pooled_features": features}
        return Detections(scores, anomaly_maps=maps, **further, **verdicts._asdict())

    def recognized(
        self, images: Sequence[ImageInput], given: Categories | None, batch_size: int
    ) -> tuple[list[int] | None, np.ndarray]:
        """Category index of every image, given or recognised (None for a model of one), and `(N,)` bool, of no category."""
        indices = category_indices(given, self.category_names, len(images))
        if indices is not None or self._recognize is None:
            return indices, np.zeros(len(images), dtype=bool)
        found, unknown = [], []
        for _, originals in _batches(images, None, 1 if self.description.is_tiled else batch_size):
            tiles = np.stack([self._tiles(image)[0] for image in originals])  # (B, tiles, 3, h, w)
            outputs = self._recognize({"tiles": tiles})
            found += outputs["category"].tolist()
            unknown += outputs["is_unknown"].tolist()
        return found, np.array(unknown, dtype=bool)

    def scored(
        self, images: Sequence[ImageInput], categories: Sequence[int] | None, batch_size: int
    ) -> Iterator[tuple[list[int], list[Image.Image], dict[str, np.ndarray]]]:
        """Batches of images: indices, originals, and `image_score` `(B,)` with `anomaly_map` and term maps `(B, H, W)`."""
        if self.description.is_tiled:
            for indices, originals in _batches(images, categories, 1):
                category = None if categories is None else categories[indices[0]]
                yield indices, originals, self._score_tiles(originals[0], category, batch_size)
            return
        for indices, originals in _batches(images, categories, batch_size):
            inputs = {"image": _unit_range(originals, self.description.image_size)}
            if self.description.detail_size is not None:
                inputs["detail"] = _unit_range(originals, self.description.detail_size)
            if categories is not None:
                inputs["category"] = np.array([categories[i] for i in indices])
            yield indices, originals, self._score(inputs)

    def _score_tiles(self, image: Image.Image, category: int | None, batch_size: int) -> dict[str, np.ndarray]:
        """Scores an image in tiles: blends their term maps, then fuses them."""
        description = self.description
        tiles, size, corners = self._tiles(image)
        weights = blend_weights(size, corners, description.image_size)
        canvases: dict[str, np.ndarray] = {}
        pooled = []
        for start in range(0, len(corners), batch_size):
            part = slice(start, start + batch_size)
            inputs = {"image": tiles[part]}
            if category is not None:
                inputs["category"] = np.full(len(tiles[part]), category)
            outputs = self._score(inputs)
            pooled.append(outputs.pop(POOLED_FEATURES, None))  # (tiles, D)
            for output, maps in outputs.items():
                name = output.removeprefix(TERM_MAP)
                canvas = canvases.setdefault(name, np.zeros(size, dtype=np.float32))
                add_tiles(canvas, maps, weights[part], corners[part])
        statistics = description.statistics[category or 0]
        level = 0.0 if self._calibration is None else self._calibration.outside_level
        region = (self.region, description.region_share, level)
        anomaly_map, score = fuse(canvases, description.score, statistics, *region)
        features = {} if pooled[0] is None else {POOLED_FEATURES: np.concatenate(pooled).mean(axis=0)[None]}
        return {"anomaly_map": anomaly_map[None], "image_score": np.array([score], dtype=np.float32), **features}

    def _tiles(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int], list[tuple[int, int]]]:
        """An image's tiles `(tiles, 3, h, w)` in [0, 1], the size that it is scored at, and the tiles' corners."""
        score, tile = self.description.score, self.description.image_size
        size = scored_size(image.height, image.width, tile, score.short_side)
        pixels, corners = _unit_range([image], size)[0], tile_corners(size, tile, score.tile_overlap)
        return np.stack([pixels[:, y : y + tile[0], x : x + tile[1]] for y, x in corners]), size, corners


def _batches(
    images: Sequence[ImageInput], categories: Sequence[int] | None, batch_size: int
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    for start in range(0, len(images), batch_size):
        indices = list(range(start, min(start + batch_size, len(images))))
        yield indices, [load_rgb(images[i], f"image {i}") for i in indices]


def _unit_range(images: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """`(B, 3, *size)` float32 in [0, 1]."""
    return np.stack([resize_rgb(image, size) for image in images]).astype(np.float32) / 255
