"""Measures what aligned images of good parts propose for a hole of known content, by the size of the hole.

    python training/benchmarks/reference_content.py --data_root DATA --categories screw grid

No diffusion model is needed: the hole is given, and its content is compared with the good TEST image that it was cut from. The
references are chosen from the training images, as in training. Appends one line per category to
training/benchmarks/results/reference_content.jsonl and renders the table in model_cards/repair.md from it.
"""

import argparse
import datetime
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.reading import read_image
from diffad.repair.fill import fill_from_surroundings
from diffad.repair.proposals import aligned_contents, blend_in, with_surrounding_levels
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results
from diffad_training.benchmarks.repair import psnr
from diffad_training.benchmarks.repair_methods import nearest
from diffad_training.components import build_extractor
from diffad_training.config import load_config
from diffad_training.reference_choice import choose_references
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "training" / "benchmarks" / "results" / "reference_content.jsonl"
CARD = ROOT / "model_cards" / "repair.md"
CONFIG = ROOT / "training" / "configs" / "cpu-small.yaml"
SHARES = (0.005, 0.02, 0.08, 0.2)  # of the image
PROPOSALS = 3
METHODS = ("filled", "nearest good image pasted", "mean of 3 proposals", "best agreement")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--categories", nargs="+", required=True)
    parser.add_argument("--holes", type=int, default=12, help="of each size")
    parser.add_argument("--references", type=int, default=48)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    for category in options.categories:
        record = measure(options.data_root / category, options.holes, options.references, options.resolution, options.seed)
        machine = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores {platform.machine()}"
        append_result(RESULTS, {"category": category, "date": datetime.date.today().isoformat(), "machine": machine, **record})
    update_table(CARD, RESULTS)


def update_table(card: Path, results: Path) -> None:
    """Renders the table between the card's markers from the newest results."""
    fill_tables(card, "reference_content", lambda _: table(latest_results(results, ["category"])))


def measure(data: Path, holes: int, count: int, resolution: int, seed: int) -> dict:
    """Median PSNR of every method and seconds of the proposals, for every size of the hole."""
    training, test = (
        np.stack([resize_rgb(read_image(path), (resolution, resolution)) for path in sorted((data / part / "good").iterdir())])
        for part in ("train", "test")
    )
    everyone, one_category = np.arange(len(training)), np.zeros(len(training), dtype=int)
    references = choose_references(training, everyone, pooled_features(training, data), one_category, count)
    good = references.of_category(None)
    by_share = {}
    for share in SHARES:
        rows, seconds = [], 0.0
        for i in range(holes):
            rng = np.random.default_rng([seed, i])
            image = torch.from_numpy(test[rng.integers(len(test))]).float() / 127.5 - 1  # (3, H, W)
            region = torch.from_numpy(hole(image.numpy(), share, rng))  # (H, W)
            damaged = torch.where(region, 0.9, image)
            mask = region[None].float()
            started = time.perf_counter()
            aligned = aligned_contents(damaged, mask, good, references.config.turns, PROPOSALS)
            proposals = blend_in(damaged, mask, with_surrounding_levels(damaged, mask, aligned))
            seconds += time.perf_counter() - started
            filled = fill_from_surroundings(damaged[None], mask[None])[0]
            contents = (filled, nearest(damaged, region, good), proposals.mean(dim=0), proposals[0])
            rows.append([psnr(grey_levels(content), grey_levels(image), region.numpy()) for content in contents])
        by_share[str(share)] = dict(zip(METHODS, np.median(rows, axis=0).tolist())) | {"seconds": seconds / holes}
    kept = {"references": len(good), "turns": references.config.turns, "holes": holes, "seed": seed}
    return {**kept, "psnr": by_share}


@torch.no_grad()
def pooled_features(images: np.ndarray, data: Path) -> np.ndarray:
    """`(N, D)` spatial means of the default extractor's features of images `(N, 3, H, W)` uint8."""
    extractor = build_extractor(load_config(str(CONFIG), {"data": str(data)}))
    means = [
        extractor.raw_features(torch.from_numpy(images[start : start + 16]).float() / 127.5 - 1).mean(dim=(2, 3))
        for start in range(0, len(images), 16)
    ]
    return torch.cat(means).numpy()


def hole(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Bool `(H, W)`, an irregular blob of a share of the image `(3, H, W)`, in a place that has structure."""
    grey = image.mean(axis=0)
    structure = gaussian_filter(np.hypot(*np.gradient(gaussian_filter(grey, 1))), sigma=min(grey.shape) / 32) ** 2
    row, column = np.unravel_index(rng.choice(grey.size, p=structure.ravel() / structure.sum()), grey.shape)
    radius = np.sqrt(share * grey.size / np.pi)
    rows, columns = np.ogrid[: grey.shape[0], : grey.shape[1]]
    ripple = gaussian_filter(rng.normal(size=grey.shape), sigma=max(radius / 2, 1))
    return np.hypot(rows - row, columns - column) / radius + 0.3 * ripple / ripple.std() < 1


def grey_levels(image: torch.Tensor) -> np.ndarray:
    """An image `(3, H, W)` in [-1, 1] as `(H, W, 3)` in 0..255, not rounded."""
    return (image.permute(1, 2, 0).numpy() + 1) * 127.5


def table(records: list[dict]) -> str:
    """Markdown table of all categories and sizes."""
    columns = ["category", "hole", *METHODS, "s/hole"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for record in records:
        for share, figures in record["psnr"].items():
            cells = [f"{figures[name]:.1f}" for name in METHODS] + [f"{figures['seconds']:.1f}"]
            lines.append(f"| {record['category']} | {100 * float(share):g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
