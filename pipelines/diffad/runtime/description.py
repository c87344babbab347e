"""`detector.json`: all that an exported model's graph does not say."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..scoring.config import ScoreConfig
from ..system.file_digest import file_digest

FORMAT = 1
TERM_MAP = "term_map."  # begins the names of the graph's outputs that are maps of single terms
POOLED_FEATURES = "pooled_features"  # name of the output that the monitor compares images by
FILE, REGION_FILE = "detector.json", "region.png"


class ExportError(ValueError):
    """An exported folder can't be used; names the file and the remedy."""


@dataclass(frozen=True)
class CalibrationScores:
    """What the images behind one category's thresholds score in one runtime and precision, all ascending `(n,)`.

    Args:
        scores, maxima: of the images, or the highest ones of each group of them.
        single_scores: of one image drawn of each group; None where there are no groups.
    """

    scores: tuple[float, ...]
    maxima: tuple[float, ...]
    single_scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Statistics:
    """What scores of one category are formed with outside the graph, where images are scored in tiles.

    Args:
        term_mean, term_std: of every term map, in the order of [`ScoreConfig.term_map_names`].
        tail_knots, tail_scale, tail_shape: of every term of the map; empty unless the score's fusion is `tails`.
        verdict_mean, verdict_std: of every term of the verdict.
    """

    term_mean: tuple[float, ...]
    term_std: tuple[float, ...]
    tail_knots: tuple[tuple[float, ...], ...] = ()
    tail_scale: tuple[float, ...] = ()
    tail_shape: tuple[float, ...] = ()
    verdict_mean: tuple[float, ...] = ()
    verdict_std: tuple[float, ...] = ()


@dataclass(frozen=True)
class DetectorDescription:
    """The content of `detector.json`.

    Args:
        runtime: `onnxruntime` or `openvino`.
        weights: `fp32` or `int8`, what the graph computes with unless the runtime is told otherwise.
        graph: file of the graph from image to score; of a model of tiles, from a tile to its term maps.
        image_size: `(height, width)` of the graph's input `image`.
        detail_size: `(height, width)` of its input `detail`, the same image at twice the size; None where it has none.
        score: settings of [`ScoreConfig`].
        calibrations: by precision (`fp32`, `bf16`, `int8`), for every category what thresholds come from.
        model: digest of the pipeline that was exported.
        category_names: in the order of the indices that the input `category` takes; None for a model of one.
        category_graph: file of the graph that recognises them.
        term_maps: whose maps the graph returns beside `anomaly_map` and `image_score`, as `term_map.NAME`.
        statistics: of each category; only of a model of tiles.
        has_region: whether `region.png` holds a region of interest.
        region_share: share of the image that is inside.
        files: SHA-256 of every file that is read.
        version: of diffad, which wrote it.
        format: of this file.
    """

    runtime: str
    weights: str
    graph: str
    image_size: tuple[int, int]
    detail_size: tuple[int, int] | None
    score: ScoreConfig
    calibrations: Mapping[str, tuple[CalibrationScores, ...]]
    model: str
    category_names: tuple[str, ...] | None = None
    category_graph: str | None = None
    term_maps: tuple[str, ...] = ()
    statistics: tuple[Statistics, ...] = ()
    has_region: bool = False
    region_share: float = 1.0
    files: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    format: int = FORMAT

    @property
    def is_tiled(self) -> bool:
        """Whether images are scored in tiles of `image_size`."""
        return self.score.short_side is not None

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in which the runtime can compute the graph; bf16 is that of whatever the graph holds as float."""
        return (self.weights, "bf16") if self.runtime == "openvino" else (self.weights,)

    def write(self, folder: Path) -> None:
        """Writes `detector.json`."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "DetectorDescription":
        """Reads a folder's description and compares the digests of its files.

        Raises:
            ExportError: if it is missing or damaged, or of a later release.
        """
        path = folder / FILE
        if not path.is_file():
            raise ExportError(f"{folder}: is not an exported model (no {FILE}); `diffad export MODEL FOLDER` makes one")
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["format"] > FORMAT:
                raise ExportError(f"{path}: written by diffad {saved['version']}; use its own detector.py, or update diffad")
            description = cls(**{name: _READ.get(name, _same)(value) for name, value in saved.items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, ExportError):
                raise
            raise ExportError(f"{path}: is damaged ({error}); export the model again") from error
        for name, digest in description.files.items():
            if not (folder / name).is_file() or file_digest(folder / name) != digest:
                raise ExportError(f"{folder / name}: is missing or not as it was exported; export the model again")
        return description

    def read_region(self, folder: Path) -> np.ndarray | None:
        """The region of interest, bool `(height, width)`; None is the whole image."""
        if not self.has_region:
            return None
        with Image.open(folder / REGION_FILE) as image:
            return np.asarray(image.convert("L")) > 0


def _same(value: object) -> object:
    return value


def as_tuples(value: object) -> object:
    """Lists, of lists too, as tuples; anything else as it is."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def _score(saved: Mapping[str, object]) -> ScoreConfig:
    return ScoreConfig(**{name: as_tuples(value) for name, value in saved.items()})


def _calibrations(saved: Mapping[str, list]) -> dict[str, tuple[CalibrationScores, ...]]:
    return {name: tuple(map(_calibration_scores, of_categories)) for name, of_categories in saved.items()}


def _calibration_scores(saved: Mapping[str, list]) -> CalibrationScores:
    single = saved.get("single_scores")  # which earlier releases did not write
    return CalibrationScores(tuple(saved["scores"]), tuple(saved["maxima"]), None if single is None else tuple(single))


def _statistics(saved: list[Mapping[str, list]]) -> tuple[Statistics, ...]:
    return tuple(Statistics(**{name: as_tuples(values) for name, values in one.items()}) for one in saved)


_READ = {
    "image_size": as_tuples,
    "detail_size": as_tuples,
    "category_names": as_tuples,
    "term_maps": as_tuples,
    "score": _score,
    "calibrations": _calibrations,
    "statistics": _statistics,
}
