"""Writes the folder of an exported model: graphs, `detector.json`, and the code that runs them."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

from .. import __version__
from ..hub.single_file import single_file_code
from ..imaging.preprocessing import ImageInput
from ..imaging.tensors import cut
from ..pipeline_diffad import DiffADPipeline
from ..runtime.description import (
    POOLED_FEATURES,
    REGION_FILE,
    TERM_MAP,
    CalibrationScores,
    DetectorDescription,
    Statistics,
    as_tuples,
)
from ..runtime.engines import build_engine
from ..runtime.reference_file import REFERENCE_FILE, tensors_of
from ..scoring.calibration import Calibration
from ..scoring.inputs import InputReader
from ..scoring.scorer import Scorer
from ..scoring.tiling import tile_corners
from ..system.atomic import writing
from ..system.file_digest import file_digest
from .formats import FORMATS, SUFFIXES, save_graph
from .graph import category_graph, score_graph, score_inputs
from .half_storage import store_in_half
from .quantization import quantized

GRAPH, CATEGORY_GRAPH = "model", "categories"
CODE, REQUIREMENTS = "detector.py", "requirements.txt"
PACKAGES = ("numpy", "pillow", "scipy")
TOLERANCE = 1e-3  # of a score's spread on good parts, by which the written graph may differ from the pipeline


def export_pipeline(
    pipe: DiffADPipeline,
    folder: str | Path,
    export_format: str = "onnx",
    term_maps: bool = False,
    int8_images: Sequence[ImageInput] | None = None,
) -> DetectorDescription:
    """Exports a calibrated pipeline as a folder that [`diffad.runtime.Detector`] runs.

    The graph is compared with the pipeline before anything takes its place. The folder is complete: `python detector.py IMAGE`
    needs what `requirements.txt` lists and nothing else.

    Args:
        export_format: `onnx` or `openvino`.
        term_maps: whether the graph returns the standardised maps of all terms, too; of images that are scored whole.
        int8_images: good images from which the diffusion models are quantised to 8 bits; the model then has no thresholds until
            [`calibrate_exported`] sets them. None leaves the graph in float32.

    Raises:
        ValueError: if the pipeline is not calibrated or not in float32, or an argument can't be used.
        ModuleNotFoundError: naming packages that are not installed.
        RuntimeError: if the graph does not score as the pipeline does.
    """
    if export_format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {export_format!r}")
    if not pipe.calibration.is_fitted:
        raise ValueError("the pipeline is not calibrated: call pipe.calibrate(calibration_images) first")
    if pipe.unet.dtype != torch.float32:
        raise ValueError(f"the pipeline is in {pipe.unet.dtype}; load it in float32 to export it")
    device = pipe.device
    try:
        return _export_on_cpu(pipe.to("cpu"), Path(folder), export_format, term_maps, int8_images)
    finally:
        pipe.to(device)


def _export_on_cpu(
    pipe: DiffADPipeline,
    folder: Path,
    export_format: str,
    term_maps: bool,
    int8_images: Sequence[ImageInput] | None,
) -> DetectorDescription:
    scorer, calibration = pipe.scorer, pipe.calibration
    is_tiled = scorer.config.short_side is not None
    if term_maps and is_tiled:
        raise ValueError("term_maps are of images that are scored whole; this model scores tiles")
    names = pipe.category_names
    term_names = scorer.config.term_map_names if term_maps else []
    suffix = SUFFIXES[export_format]
    graphs = {GRAPH: score_graph(scorer, names is not None, term_names)}
    if int8_images is not None:
        graphs[GRAPH] = quantized(graphs[GRAPH], _graph_inputs(pipe, int8_images))
    if names is not None:
        graphs[CATEGORY_GRAPH] = category_graph(pipe.feature_extractor, pipe.discriminant, pipe.image_size)
    with writing(folder, whole=True) as unfinished:
        files = []
        for name, graph in graphs.items():
            store_in_half(graph)
            files += save_graph(graph, unfinished, name, export_format)
        if calibration.region is not None:
            Image.fromarray(calibration.region.astype(np.uint8) * 255).save(unfinished / REGION_FILE)
            files.append(REGION_FILE)
        references = stored_references(calibration) if int8_images is None else {}
        if references:
            save_file(references, unfinished / REFERENCE_FILE)
            files.append(REFERENCE_FILE)
        description = DetectorDescription(
            runtime=FORMATS[export_format],
            weights="fp32" if int8_images is None else "int8",
            graph=GRAPH + suffix,
            image_size=pipe.image_size,
            detail_size=None if is_tiled else scorer.detail_size,
            score=scorer.config,
            calibrations={"fp32": stored_scores(calibration)} if int8_images is None else {},
            model=pipe.digest,
            category_names=None if names is None else tuple(names),
            category_graph=None if names is None else CATEGORY_GRAPH + suffix,
            term_maps=tuple(term_names),
            statistics=stored_statistics(calibration) if is_tiled else (),
            has_region=calibration.region is not None,
            region_share=calibration.config.roi_share,
            files={name: file_digest(unfinished / name) for name in files},
            version=__version__,
        )
        if int8_images is None:
            check_graph(scorer, description, unfinished)
        description.write(unfinished)
        (unfinished / CODE).write_text(detector_code(), encoding="utf-8")
        needed = sorted([*PACKAGES, FORMATS[export_format]])
        (unfinished / REQUIREMENTS).write_text("".join(f"{name}=={version(name)}\n" for name in needed), encoding="utf-8")
    return description


def _graph_inputs(pipe: DiffADPipeline, images: Sequence[ImageInput]) -> list[dict[str, np.ndarray]]:
    """What the graph takes, image by image; of a model of tiles the tiles of an image."""
    scorer = pipe.scorer
    reader = InputReader(scorer, pipe.discriminant, torch.device("cpu"))
    category_of, _ = reader.categories(images, None, 1)
    inputs = []
    for batch in reader.batches(images, category_of, 1):
        corners = tile_corners(tuple(batch.pixels.shape[-2:]), scorer.image_size, scorer.config.tile_overlap)
        of_image = {"image": (cut(batch.pixels, corners, scorer.image_size) + 1) / 2}
        if batch.detail is not None:
            of_image["detail"] = (batch.detail + 1) / 2
        inputs.append({name: values.numpy() for name, values in of_image.items()})
        if batch.category is not None:
            inputs[-1]["category"] = np.full(len(corners), batch.category)
    return inputs


def detector_code() -> str:
    """`detector.py`: the runtime as one file."""
    code = single_file_code(__version__, "runtime.command")
    return f'{code}\n\nif __name__ == "__main__":\n    sys.exit(main(Path(__file__).resolve().parent))\n'


def stored_scores(calibration: Calibration) -> tuple[CalibrationScores, ...]:
    """What the images behind a pipeline's thresholds score, category by category."""
    stored = []
    for category in range(len(calibration.images_per_category)):
        scores, maxima = calibration.calibration_scores_of(category), calibration.calibration_maxima_of(category)
        single = calibration.single_scores_of(category)
        stored.append(CalibrationScores(*(None if v is None else tuple(v.tolist()) for v in (scores, maxima, single))))
    return tuple(stored)


def stored_references(calibration: Calibration) -> dict[str, np.ndarray]:
    """What the images behind a pipeline's thresholds look like, as tensors of the folder's file; none where it is not known."""
    references = {category: calibration.reference_parts(category) for category in range(len(calibration.images_per_category))}
    return {} if None in references.values() else tensors_of("fp32", references)


def stored_statistics(calibration: Calibration) -> tuple[Statistics, ...]:
    """What a pipeline's scores are formed with, category by category."""
    count = len(calibration.images_per_category)

    def of_category(name: str) -> list:
        values = getattr(calibration, name, None)
        return [()] * count if values is None else as_tuples(values.view(count, -1, *values.shape[1:]).tolist())

    names = ("term_mean", "term_std", "tail_knots", "tail_scale", "tail_shape", "verdict_mean", "verdict_std")
    return tuple(Statistics(*of_one) for of_one in zip(*map(of_category, names), strict=True))


@torch.no_grad()
def check_graph(scorer: Scorer, description: DetectorDescription, folder: Path) -> None:
    """Compares what the written graph says of an example with what the scorer says.

    Raises:
        RuntimeError: naming the output that differs.
    """
    inputs = score_inputs(scorer, description.category_names is not None)
    engine = build_engine(description.runtime, folder / description.graph, "cpu", None, "fp32")
    outputs = engine({name: values.numpy() for name, values in inputs.items()})
    image, category = 2 * inputs["image"] - 1, inputs.get("category")
    if description.is_tiled:
        maps, pooled = scorer.measure_tiles(image, category, scorer.config.terms)
        expected = {TERM_MAP + name: values for name, values in maps.items()}
    else:
        detail = None if "detail" not in inputs else 2 * inputs["detail"] - 1
        score = scorer(image, category, detail=detail)
        expected, pooled = {"anomaly_map": score.anomaly_maps, "image_score": score.image_scores}, score.pooled_features
    expected |= {} if pooled is None else {POOLED_FEATURES: pooled}
    for name, values in outputs.items():
        if name in expected:
            difference = np.abs(values - expected[name].numpy()).max()
            if not difference <= TOLERANCE * max(1.0, float(expected[name].abs().max())):
                by = f"the exported graph's {name} differs from the pipeline's by {difference:.2g}"
                raise RuntimeError(f"{by}; export with onnxscript 0.7.2 or later, or another torch than {torch.__version__}")
