"""Measures `diffad audit`: real defects are mixed into good images, and looked for at the top of its list.

    python training/benchmarks/audit.py DATA/grid DATA/screw DATA/magnetic_tile --features features

Some seeded draws of defective test images, 5 and 10 % of the list, are put among the good training images. Measured are the
share of them in the first 15 % of the list, what is called an outlier, and outliers among the good images alone. Features are
extracted once and kept in a folder. Appends a line per draw to results/audit.jsonl, and renders the table of
model_cards/audit.md.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffad.data import Sample, evaluation_samples, training_samples
from diffad.jobs.audit import SCALES, AuditedImages, audit, read_images
from diffad.system.memory import keep_freed_memory
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results
from diffad_training.components import build_extractor
from diffad_training.config import TrainingConfig

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "training" / "benchmarks" / "results" / "audit.jsonl"
CARD = ROOT / "model_cards" / "audit.md"
SHARES = (0.0, 0.05, 0.1)  # of defects in the list
TOP = 0.15  # of the list
IDENTITY = ("category", "share", "seed")


def main(arguments: list[str] | None = None) -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description="Defects among good images.", allow_abbrev=False)
    parser.add_argument("data", nargs="+", type=Path, help="folders in MVTec layout")
    parser.add_argument("--features", type=Path, required=True, help="folder that keeps extracted features")
    parser.add_argument("--seeds", type=int, default=3, help="draws of defects for each share")
    options = parser.parse_args(arguments)
    config = TrainingConfig()
    for folder in options.data:
        good = training_samples(folder)
        bad = [sample for sample in evaluation_samples(folder) if sample.is_defective]
        images = _images([*good, *bad], folder, options.features, config)
        for share in SHARES:
            for seed in range(options.seeds if share else 1):
                append_result(RESULTS, {"category": folder.name, **measure(images, good, bad, share, seed)})
                update_table(CARD, RESULTS)


def update_table(card: Path, results: Path) -> None:
    """Renders the table between the card's markers from the newest results."""
    fill_tables(card, "audit", lambda _: table(latest_results(results, IDENTITY)))


def measure(images: AuditedImages, good: list[Sample], bad: list[Sample], share: float, seed: int) -> dict:
    """Audits good images among which some defective ones are.

    Args:
        images: of all good ones, then all defective ones.
        share: of defective ones in the list.
        seed: of the draw.
    """
    count = min(round(len(good) * share / (1 - share)), len(bad))
    drawn = np.random.default_rng(seed).choice(len(bad), count, replace=False)
    indices = [*range(len(good)), *(len(good) + drawn)]
    started = time.perf_counter()
    listed = [*good, *(bad[i] for i in drawn)]
    chosen = AuditedImages({k: v[indices] for k, v in images.features.items()}, [images.digests[i] for i in indices])
    outliers = audit(listed, chosen).outliers
    is_defective = np.arange(len(listed)) >= len(good)
    top = outliers.order[: math.ceil(TOP * len(listed))]
    return {
        "share": share,
        "seed": seed,
        "good": len(good),
        "defects": count,
        "in_top": int(is_defective[top].sum()),
        "outliers_good": int((outliers.is_outlier & ~is_defective).sum()),
        "outliers_defective": int((outliers.is_outlier & is_defective).sum()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(results: list[dict]) -> str:
    """Markdown: one row for each category and share, with the mean and the worst of its draws."""
    head = ("category", "defects", "draws", "in the first 15 %", "worst draw", "called outliers", "good ones called outliers")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for category, share in sorted({(result["category"], result["share"]) for result in results}):
        draws = [result for result in results if (result["category"], result["share"]) == (category, share)]
        good = f"{np.mean([draw['outliers_good'] for draw in draws]):.1f} of {draws[0]['good']}"
        cells = [category, "none", str(len(draws)), "", "", "", good]
        if share:
            shares = [100 * draw["in_top"] / draw["defects"] for draw in draws]
            found = [100 * draw["outliers_defective"] / draw["defects"] for draw in draws]
            cells[1] = f"{100 * share:.0f} %, {draws[0]['defects']}"
            cells[3:6] = [f"{np.mean(shares):.0f} %", f"{min(shares):.0f} %", f"{np.mean(found):.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _images(samples: list[Sample], folder: Path, cache: Path, config: TrainingConfig) -> AuditedImages:
    """Features of these images from the folder that keeps them, or extracted and kept there."""
    files = {name: cache / f"{folder.name}.{name}.npy" for name in SCALES}
    names = cache / f"{folder.name}.txt"
    if not all(path.is_file() for path in (names, *files.values())):
        images = read_images(samples, build_extractor(config), config.resolution)
        cache.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            np.save(path, images.features[name].numpy())
        names.write_text("\n".join(sample.name for sample in samples))
    place = {name: i for i, name in enumerate(names.read_text().split("\n"))}
    indices = [place[sample.name] for sample in samples]
    features = {name: torch.from_numpy(np.load(path, mmap_mode="r")[indices]) for name, path in files.items()}
    # Each counts as different: copies within the data are for `diffad audit` itself to find
    return AuditedImages(features, [str(i) for i in range(len(samples))])


if __name__ == "__main__":
    main()
