"""anomalib's PaDiM and PatchCore as they are timed: its own code, and its own export to OpenVINO."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffad.data import Sample, training_samples
from diffad.evaluation.scored_samples import PROTOCOL_MAP_SIZE
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad_training.benchmarks import peers
from diffad_training.benchmarks.speed_contenders import scoring_labels
from diffad_training.benchmarks.speed_graphs import Graph, default_openvino_precision, load_openvino
from diffad_training.benchmarks.speed_timing import Contender

# PatchCore's coreset is chosen among so many patches, drawn at random: its speed depends on the coreset's size alone.
CORESET_CANDIDATES = 4 * peers.CORESET_PATCHES


def peer_scoring(
    data: Path, samples: Sequence[Sample], batches: Sequence[int], threads: int, seed: int, folder: Path
) -> Iterator[Contender]:
    """Fits the peers and scores the images with them: eager, and exported to OpenVINO by anomalib.

    The exported graphs, one for each size of batches, are computed as anomalib's inferencer does unless it is told otherwise
    (device AUTO, which takes the CPU's own precision), and in float32.

    Args:
        data: folder whose good training images the peers are fitted on.
        folder: where the exported models are written.
    """
    training = training_samples(data)
    default = f"{default_openvino_precision()}, default"
    exact = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    for name in peers.PEERS:
        model, _ = peers.fit(name, training, seed, CORESET_CANDIDATES)
        yield from contenders(name, "eager", "fp32", model_graph(model), samples, batches)
        # The last batch may be smaller.
        counts = sorted({min(size, len(samples) - start) for size in batches for start in range(0, len(samples), size)})
        paths = {count: exported(model, folder / f"{name}, {count}", count) for count in counts}
        for precision, device, settings in ((default, "AUTO", {}), ("fp32", "CPU", exact)):
            graphs = {count: load_openvino(path, device, threads, settings) for count, path in paths.items()}
            yield from contenders(name, "openvino", precision, by_batch(graphs), samples, batches)


def contenders(
    name: str, runtime: str, precision: str, graph: Graph, samples: Sequence[Sample], batches: Sequence[int]
) -> Iterator[Contender]:
    """What scores all images, from tensors and from files."""
    for size in batches:
        groups = [samples[start : start + size] for start in range(0, len(samples), size)]
        loaded = [load(group) for group in groups]

        def score_tensors(loaded=loaded) -> None:
            for images in loaded:
                graph({"input": images})

        def score_files(groups=groups) -> None:
            for group in groups:
                graph({"input": load(group)})

        for source, call in (("tensors", score_tensors), ("files", score_files)):
            labels = scoring_labels(name, runtime, precision, size, source, is_peer=True)
            yield Contender(labels, call, len(samples))


def load(samples: Sequence[Sample]) -> np.ndarray:
    """Images `(B, 3, *PROTOCOL_MAP_SIZE)` in [-1, 1]."""
    pixels = np.stack([resize_rgb(sample.read(), PROTOCOL_MAP_SIZE) for sample in samples])
    return to_model_range(torch.from_numpy(pixels)).numpy()


def by_batch(graphs: Mapping[int, Graph]) -> Graph:
    """The graph of the batch's size."""
    return lambda inputs: graphs[len(inputs["input"])](inputs)


def model_graph(model: torch.nn.Module) -> Graph:
    @torch.no_grad()
    def call(inputs) -> object:
        return model(torch.from_numpy(inputs["input"]))

    return call


def exported(model: torch.nn.Module, folder: Path, batch: int) -> Path:
    """Writes a fitted peer by anomalib's own exporter and returns its graph, from images in [-1, 1] to map and score.

    The graph takes batches of one size: with any size, which is the exporter's default, PatchCore's ends up taking two images.
    Resizing and normalisation before the model and thresholds after it are left out, as they are of the eager peer.
    """
    from anomalib.models import Padim, Patchcore

    off = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), False)
    settings = {"backbone": peers.BACKBONE, "layers": list(model.layers), "pre_trained": False, **off}
    is_patchcore = hasattr(model, "memory_bank")
    module = Patchcore(**settings) if is_patchcore else Padim(**settings, n_features=peers.PADIM_DIMENSIONS)
    module.model = model
    return module.to_openvino(folder, input_size=PROTOCOL_MAP_SIZE, onnx_kwargs={"dynamic_shapes": ({0: batch},)})
