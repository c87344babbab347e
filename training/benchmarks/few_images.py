"""Measures what is found by models of few good images, beside anomalib's PaDiM and PatchCore fitted to the same images.

    python training/benchmarks/few_images.py --data_root DATA --categories grid magnetic_tile
    python training/benchmarks/few_images.py --data_root DATA --categories grid --counts 4 16 --draws 0 1 2

Our models are of the profile `gaussian` with the default settings, which hold a part of the images out for thresholds; peers
are fitted to all of them. Images are drawn from the category's good training images by the seed of the draw. Of large test sets
every k-th good image and every k-th of each defect are measured (--every). Appends one line for each category, detector, count
and draw to results/few_images.jsonl beside this file, and renders the tables of model_cards/few_images.md. Needs
`pip install 'diffad[peers,demo]'`.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffad.data import Sample, evaluation_samples, training_samples
from diffad.evaluation.scored_samples import PROTOCOL_MAP_SIZE, read_truth
from diffad.scoring.profiles import GAUSSIAN
from diffad.system.memory import return_freed_memory
from diffad_training.benchmarks import peers
from diffad_training.benchmarks.detection import OURS, ROOT
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results
from diffad_training.benchmarks.robustness import METRICS, Scores, metrics_of, trained_model

RESULTS = ROOT / "training" / "benchmarks" / "results" / "few_images.jsonl"
CARD = ROOT / "model_cards" / "few_images.md"
IDENTITY = ("category", "detector", "count", "draw")
COUNTS, DRAWS = (4, 8, 16, 24, 100), (0, 1, 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark models of few good images.", allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, help="folder of categories in MVTec layout")
    parser.add_argument("--categories", nargs="+", default=[])
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS), help="of good images")
    parser.add_argument("--draws", nargs="+", type=int, default=list(DRAWS), help="seeds of the images that are drawn")
    parser.add_argument("--every", type=int, default=1, help="measure every k-th test image of each kind")
    parser.add_argument("--tables_only", action="store_true", help="render the tables from the kept results")
    options = parser.parse_args(arguments)
    if not options.tables_only and (options.data_root is None or not options.categories):
        parser.error("give --data_root and --categories, or --tables_only")
    return_freed_memory()
    for category in options.categories:
        good = training_samples(str(options.data_root / category))
        test = every(evaluation_samples(options.data_root / category), options.every)
        masks, is_defective = read_truth(test, PROTOCOL_MAP_SIZE), np.array([sample.is_defective for sample in test])
        for count in [count for count in options.counts if count <= len(good)]:
            for draw in options.draws:
                for detector in (OURS, *peers.PEERS):
                    scores = scores_of(detector, drawn(good, count, draw), draw, test, masks)
                    result = {"category": category, "detector": detector, "count": count, "draw": draw}
                    result |= {"metrics": metrics_of(scores, is_defective, masks), "test_images": len(test)}
                    append_result(RESULTS, {**result, "date": datetime.date.today().isoformat()})
                    print(result, flush=True)
    update_tables(CARD, RESULTS)


def drawn(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """So many samples, drawn by a seed, in their order."""
    chosen = np.random.default_rng(seed).choice(len(samples), count, replace=False)
    return [samples[i] for i in sorted(chosen)]


def every(samples: Sequence[Sample], step: int) -> list[Sample]:
    """The first of the good ones and of those of each defect, and every so many after it."""
    seen: dict[str, int] = {}
    kept = []
    for sample in samples:
        place = seen.setdefault(sample.defect, 0)
        seen[sample.defect] += 1
        if place % step == 0:
            kept.append(sample)
    return kept


def scores_of(detector: str, good: Sequence[Sample], seed: int, test: Sequence[Sample], masks: np.ndarray) -> Scores:
    """What a detector of these good images says of the test images."""
    if detector != OURS:
        model, _ = peers.fit(detector, good, seed, candidates=None)
        return Scores(*peers.score(model, test))
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = Path(scratch, "good"), Path(scratch, "model")
        folder.mkdir()
        for i, sample in enumerate(good):
            sample.read().save(folder / f"{i:03d}.png")
        settings = ["--config", "cpu-small", "--profile", GAUSSIAN, "--seed", str(seed), "--report_to", "none"]
        script = ROOT / "training" / "train.py"
        subprocess.run([sys.executable, script, "--data", folder, "--output_dir", model, *settings], check=True)
        return trained_model(model, None)(test, masks)


def update_tables(card: Path, kept: Path) -> None:
    """Renders the tables of a card from kept results; those of categories without any are empty."""
    results = latest_results(kept, IDENTITY)
    fill_tables(card, "few_images", lambda category: table([r for r in results if r["category"] == category]))


def table(results: list[dict]) -> str:
    """Markdown: one row for each count, mean and spread over draws of every detector's metrics."""
    if not results:
        return ""
    detectors = list(dict.fromkeys(result["detector"] for result in results))
    lines = [f"| good images | draws | {' | '.join(detectors)} |", "|---" * (len(detectors) + 2) + "|"]
    for count in sorted({result["count"] for result in results}):
        of_count = [result for result in results if result["count"] == count]
        cells = []
        for detector in detectors:
            values = [[100 * r["metrics"][m] for m in METRICS] for r in of_count if r["detector"] == detector]
            means, spreads = np.mean(values, axis=0), np.ptp(values, axis=0) / 2
            cells.append(" / ".join(f"{mean:.1f} ± {spread:.1f}" for mean, spread in zip(means, spreads)))
        draws = len({result["draw"] for result in of_count})
        lines.append(f"| {count} | {draws} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
