"""Measures whether repair says so where too little is left to tell: `output.confident` by the size of synthetic defects.

    python training/benchmarks/repair_confidence.py --data_root DATA --models runs/screw

It must be false on at least 90 % of defects above 30 % of the image and true on at least 90 % of those below 3 %. Defects are
put on good TEST images, which no choice has seen. Appends one line per model to
training/benchmarks/results/repair_confidence.jsonl and renders the table in model_cards/repair.md from it.
"""

import argparse
import datetime
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.data import evaluation_samples
from diffad.imaging.preprocessing import resize_rgb
from diffad_training.benchmarks.records import append_result, category_of, fill_tables, latest_results, this_machine
from diffad_training.benchmarks.synthetic_defects import defect_set
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "training" / "benchmarks" / "results" / "repair_confidence.jsonl"
CARD = ROOT / "model_cards" / "repair.md"
SHARES = (0.005, 0.025, 0.08, 0.35)  # of the image that synthetic defects cover


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="pipelines written by train.py")
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--defects", type=int, default=20, help="of each size")
    parser.add_argument("--seed", type=int, default=101)
    options = parser.parse_args(arguments)
    for model in options.models:
        pipe = DiffADPipeline.from_pretrained(model)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        category = category_of(model)
        size = pipe.scorer.detail_size or pipe.image_size
        good = [sample for sample in evaluation_samples(options.data_root / category) if not sample.is_defective]
        order = np.random.default_rng(options.seed).permutation(len(good))
        images = [resize_rgb(good[i].read(), size).transpose(1, 2, 0) for i in order]
        record = {
            "category": category,
            "seed": options.seed,
            "date": datetime.date.today().isoformat(),
            "machine": this_machine(pipe.device),
            "defects": options.defects,
            "shares": {str(share): measure(pipe, images, options.defects, options.seed, share) for share in SHARES},
        }
        append_result(RESULTS, record)
        print(table([record]))
    update_table(CARD, RESULTS)


def update_table(card: Path, results: Path) -> None:
    """Renders the table between the card's markers from the newest results."""
    fill_tables(card, "repair_confidence", lambda _: table(latest_results(results, ["category"])))


def measure(pipe: DiffADPipeline, images: list[np.ndarray], count: int, seed: int, share: float) -> dict[str, float]:
    """Of defects that cover a share of good images `(H, W, 3)`: the shares that are found, and whose repair is confident."""
    found, confident = [], []
    for defect in tqdm(defect_set(images, count, seed, share), total=count, desc=f"{share}", mininterval=2):
        found.append(bool(pipe(defect.defective).is_defective[0]))
        confident.append(bool(pipe.reconstruct(defect.defective).confident[0]))
    return {"found": float(np.mean(found)), "confident": float(np.mean(confident))}


def table(records: list[dict]) -> str:
    """Markdown table of all categories: the share of confident repairs by size."""
    sizes = [f"{100 * share:g} %" for share in SHARES]
    lines = ["| category | defects of each size | " + " | ".join(sizes) + " |", "|---" * (len(sizes) + 2) + "|"]
    for record in records:
        of_each = [record["shares"].get(str(share)) for share in SHARES]  # earlier runs measured fewer
        cells = ["" if figures is None else f"{100 * figures['confident']:.0f} %" for figures in of_each]
        lines.append(f"| {record['category']} | {record['defects']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
