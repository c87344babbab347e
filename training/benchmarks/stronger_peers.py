"""Scores stronger peers with diffad's metrics: trained ones, a larger coreset, and positional matching after RAD.

    python training/benchmarks/stronger_peers.py --data_root DATA --categories grid screw
    python training/benchmarks/stronger_peers.py --data_root DATA --categories grid --peers STFPM

Needs `pip install 'diffad[peers,demo]'`. As in peers.py all good training images are fitted, test images are only scored, and
every peer sees 256x256 images and EfficientNet-lite0. STFPM, SuperSimpleNet and PatchCore are anomalib's code;
trained_peers.py and `coreset` say what is changed for a CPU. positional_matching.py is ours. Appends one line for each category
and peer, once it is measured, to results/stronger_peers.jsonl beside this file, and renders the table of
model_cards/benchmark.md.
"""

import argparse
import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from diffad import ImageError
from diffad.data import DataError, Sample, training_samples
from diffad.system.memory import return_freed_memory
from diffad_training.benchmarks import detection, peers, records
from diffad_training.benchmarks.positional_matching import PositionalMatching
from diffad_training.benchmarks.trained_peers import stfpm, supersimplenet

RESULTS = detection.RESULTS.with_name("stronger_peers.jsonl")
CARD = detection.ROOT / "model_cards" / "benchmark.md"
IDENTITY = ("category", "peer", "seed")
METRICS = ("aupro_30", "pixel_ap", "image_auroc")
LARGE_CORESET = 10_000
CANDIDATES = 100_000


def positional_matching(samples: Sequence[Sample], seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Positional matching with all good images; no choice is random."""
    model = peers.shown(PositionalMatching.with_lite0(), samples, "fitting")
    model.fit()
    return model, {}


def large_patchcore(samples: Sequence[Sample], seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """anomalib's PatchCore with a coreset of `LARGE_CORESET` patches chosen among `CANDIDATES` at most."""
    model = peers.shown(peers.patchcore(), samples, "fitting")
    candidates = peers.coreset_candidates(model, CANDIDATES)
    model.embedding_store.clear()
    model.memory_bank = coreset(candidates, LARGE_CORESET)
    return model, {"coreset": len(model.memory_bank), "candidates": len(candidates)}


def coreset(patches: torch.Tensor, count: int) -> torch.Tensor:
    """The patches `(count, C)` of `(P, C)` that anomalib's greedy choice takes.

    A step of anomalib's subtracts the chosen patch from all others, in memory of the size of all patches; here it is one
    product of a matrix and a vector, which gives the same distances.
    """
    from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    class ByProducts(KCenterGreedy):
        def reset_distances(self) -> None:
            super().reset_distances()
            self.squares = self.features.square().sum(dim=1)

        def update_distances(self, cluster_center: torch.Tensor) -> None:
            center = self.features[cluster_center]
            squares = self.squares + center.square().sum() - 2 * (self.features @ center)
            distances = squares.clamp_min_(0).sqrt_()[:, None]
            self.min_distances = distances if self.min_distances is None else torch.minimum(self.min_distances, distances)

    # anomalib takes a ratio and rounds the count down.
    return ByProducts(patches, min(1.0, (count + 0.5) / len(patches))).sample_coreset()


# How each is fitted to good images with a seed, and what is to be kept of that.
STRONGER: dict[str, Callable[[Sequence[Sample], int], tuple[torch.nn.Module, dict[str, Any]]]] = {
    "positional matching (after RAD)": positional_matching,
    "PatchCore, 10,000 patches (anomalib)": large_patchcore,
    "STFPM (anomalib)": stfpm,
    "SuperSimpleNet (anomalib)": supersimplenet,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark stronger peers.", allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, help="folder of categories in MVTec layout")
    parser.add_argument("--categories", nargs="+", default=[])
    parser.add_argument("--peers", nargs="+", default=list(STRONGER), choices=list(STRONGER))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables_only", action="store_true", help="render the table from the kept results")
    options = parser.parse_args(arguments)
    if not options.tables_only and (options.data_root is None or not options.categories):
        parser.error("give --data_root and --categories, or --tables_only")
    return_freed_memory()
    if not options.tables_only:
        for result in run(options):
            records.append_result(RESULTS, result)
            print(json.dumps(result), flush=True)
    update_table(CARD, RESULTS)


def run(options: argparse.Namespace) -> Iterator[dict]:
    """Fits every peer on each category, and yields the line to keep of each.

    Raises:
        ImageError, DataError: before anything is fitted, naming the test image or mask that can't be used.
    """
    tests, masks = peers.tests_and_masks(options.data_root, options.categories)
    for category, samples in tests.items():
        training = training_samples(options.data_root / category)
        for peer in options.peers:
            set_seed(options.seed)
            started = time.process_time()
            model, settings = STRONGER[peer](training, options.seed)
            fitted = time.process_time()
            scores = peers.score(model.eval(), samples)
            scored = time.process_time()
            words = ["--categories", category, "--peers", peer, "--seed", str(options.seed)]
            yield {
                "category": category,
                "peer": peer,
                "seed": options.seed,
                "settings": settings,
                "date": datetime.date.today().isoformat(),
                "machine": records.this_machine(torch.device("cpu")),
                "command": f"python training/benchmarks/stronger_peers.py --data_root DATA {shlex.join(words)}",
                **peers.measured(*scores, len(training), samples, masks[category]),
                # Of the processor, so that other work on it does not count.
                "cost": {"fit_seconds": fitted - started, "images_per_second": len(samples) / (scored - fitted)},
            }


def update_table(card: Path, kept: Path) -> None:
    """Renders the card's table from kept results; it is empty where there are none."""
    results = records.latest_results(kept, IDENTITY)
    ours = [r for r in detection.latest_results(detection.RESULTS) if not r.get("variant") and "unified" not in r]
    records.fill_tables(card, "stronger_peers", lambda _: table(results, ours, json.loads(detection.PEERS.read_text())))


def table(results: list[dict], ours: list[dict], peers_figures: dict) -> str:
    """Markdown: AUPRO, pixel AP and image AUROC of each detector by category, in percent, and what it costs.

    Args:
        results: of the stronger peers.
        ours: of one diffad model for each category, as detection.py keeps them; of several seeds the mean is taken.
        peers_figures: of PaDiM and PatchCore, as results/peers.json has them.
    """
    if not results:
        return ""
    categories = [name for name in detection.CATEGORIES if any(result["category"] == name for result in results)]
    figures: dict[str, dict[str, np.ndarray]] = {detection.OURS: {}}
    for category in categories:
        own = [[100 * r["scores"]["ensemble"][m] for m in METRICS] for r in ours if r["category"] == category]
        figures[detection.OURS][category] = np.mean(own, axis=0)
    for name, of_categories in peers_figures.items():
        if isinstance(of_categories, dict):
            places = [peers_figures["columns"].index(metric) for metric in METRICS]
            figures[name] = {c: np.array(of_categories[c])[places] for c in categories}
    for name in dict.fromkeys(result["peer"] for result in results):
        own = [result for result in results if result["peer"] == name]
        figures[name] = {r["category"]: np.array([100 * r["metrics"][m] for m in METRICS]) for r in own}
    columns = ["AUPRO / pixel AP / image AUROC", *categories, "minutes to fit", "images/s"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, of_categories in figures.items():
        cells = [cell(of_categories.get(category)) for category in categories]
        costs = [result["cost"] for result in results if result["peer"] == name]
        label = f"**{name}**" if name == detection.OURS else name
        lines.append("| " + " | ".join([label, *cells, *cost_cells(costs)]) + " |")
    return "\n".join(lines) + "\n"


def cell(values: np.ndarray | None) -> str:
    """`AUPRO / pixel AP / image AUROC`, or a dash."""
    return detection.UNKNOWN if values is None else " / ".join(f"{value:.1f}" for value in values)


def cost_cells(costs: list[dict]) -> list[str]:
    """The least and the most over categories of minutes to fit and of images/s; dashes where none were kept."""
    if not costs:
        return [detection.UNKNOWN] * 2
    minutes = [cost["fit_seconds"] / 60 for cost in costs]
    speeds = [cost["images_per_second"] for cost in costs]
    return [f"{min(minutes):.1f} to {max(minutes):.1f}", f"{min(speeds):.1f} to {max(speeds):.1f}"]


if __name__ == "__main__":
    try:
        main()
    except (DataError, ImageError) as error:
        sys.exit(f"error: {error}")
