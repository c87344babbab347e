"""Trains and evaluates categories over seeds, keeps every result, and writes the result tables of the documents.

    python training/benchmark.py --data_root DATA --categories screw magnetic_tile --seeds 0 1
    python training/benchmark.py --tables_only

DATA holds one MVTec-layout folder per category. Each run appends one line to training/results/results.jsonl, with its
command; the tables between the markers of README.md and the model cards are rendered from that file, beside the peers'
figures of results/peers.json.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

TRAINING = Path(__file__).parent
ROOT = TRAINING.parent
RESULTS = TRAINING / "results" / "results.jsonl"
PEERS = TRAINING / "results" / "peers.json"
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "aupro_30": "AUPRO"}
SPEED = "images_per_second"
SCORES = {
    "ensemble": "**diffad**",
    "paper (Eq. 11)": "paper's Eq. 11, alpha 0.5",
    "feature": "features alone",
    "kl": "KL alone",
    "rgb": "RGB error alone",
    "residual": "residual alone",
    "mahalanobis": "Gaussian alone",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark diffad.", allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, help="folder of categories in MVTec layout")
    parser.add_argument("--categories", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--config", default="cpu-small")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where models and evaluations are kept")
    parser.add_argument("--tables_only", action="store_true", help="render the tables from the kept results")
    options, training_options = parser.parse_known_args(arguments)
    if not options.tables_only:
        if options.data_root is None or not options.categories:
            parser.error("give --data_root and --categories, or --tables_only")
        for category in options.categories:
            for seed in options.seeds:
                result = run(options, category, seed, training_options)
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    results = latest_results(RESULTS)
    for document in [ROOT / "README.md", *sorted((ROOT / "model_cards").glob("*.md"))]:
        update_tables(document, results, json.loads(PEERS.read_text()))


def run(options: argparse.Namespace, category: str, seed: int, training_options: list[str]) -> dict:
    """Trains one category with one seed (a finished model of the same name is taken as it is) and evaluates it."""
    data = options.data_root / category
    model = options.runs / f"{category}-{options.config}-{seed}"
    evaluation = options.runs / f"{category}-{options.config}-{seed}-evaluation"
    if not (model / "model_index.json").is_file():
        settings = ["--config", options.config, "--data", data, "--output_dir", model, "--seed", seed, *training_options]
        _run([sys.executable, "-m", "accelerate.commands.launch", TRAINING / "train.py", *settings])
    _run(
        [sys.executable, TRAINING / "evaluate.py", "--model", model, "--data", data, "--output_dir", evaluation, "--no-report"]
    )
    result = json.loads((evaluation / "metrics.json").read_text())
    result.pop("model")
    return {
        "category": category,
        "seed": seed,
        "config": options.config,
        "options": training_options,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {result['cost']['device']}",
        "command": f"python training/benchmark.py --data_root DATA --categories {category} --seeds {seed} "
        + f"--config {options.config} "
        + shlex.join(training_options),
        "training": json.loads((model / "training_summary.json").read_text()),
        **result,
    }


def latest_results(path: Path) -> list[dict]:
    """The newest result of each category, configuration and seed."""
    if not path.is_file():
        return []
    results = [json.loads(line) for line in path.read_text().splitlines()]
    return list({(r["category"], r["config"], r["seed"]): r for r in results}.values())


def update_tables(document: Path, results: list[dict], peers: dict) -> None:
    """Fills every `<!-- benchmark:CATEGORY -->` ... `<!-- /benchmark -->` of a document."""
    if not document.is_file():
        return
    text = document.read_text()
    pattern = re.compile(r"(<!-- benchmark:([\w ]+) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
    filled = pattern.sub(lambda match: match[1] + category_table(match[2], results, peers) + match[3], text)
    if filled != text:
        document.write_text(filled)
        print(f"wrote the tables of {document}")


def category_table(category: str, results: list[dict], peers: dict) -> str:
    """Markdown table of one category: every score of ours as mean (and spread) over seeds, then the peers."""
    own = [result for result in results if result["category"] == category]
    if not own:
        raise ValueError(f"no results of {category}: run benchmark.py on it first")
    lines = ["| score | " + " | ".join(METRICS.values()) + " | images/s |", "|---" * (len(METRICS) + 2) + "|"]
    for score, label in SCORES.items():
        cells = [_mean_and_spread([100 * result["scores"][score][metric] for result in own]) for metric in METRICS]
        speed = f"{np.mean([r['cost'][SPEED] for r in own]):.1f}" if score == "ensemble" else ""
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {speed} |")
    for name, figures in peers.items():
        if isinstance(figures, dict) and category in figures:
            cells = [f"{figures[category][peers['columns'].index(column)]:.1f}" for column in (*METRICS, SPEED)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    training = [result["training"] for result in own]
    cost = [result["cost"] for result in own]
    seeds = ", ".join(str(result["seed"]) for result in own)
    lines += [
        "",
        f"Seed {seeds}; {own[0]['images']['good']} good and {own[0]['images']['defective']} defective test images; "
        f"{cost[0]['unet_parameters'] / 1e6:.1f} M UNet parameters; trained in "
        f"{np.mean([t['seconds'] for t in training]) / 60:.0f} minutes ({training[0]['steps']} steps, peak memory "
        f"{np.max([t['peak_memory_mib'] for t in training]) / 1024:.1f} GiB); evaluation's peak memory "
        f"{np.max([c['peak_memory_mib'] for c in cost]) / 1024:.1f} GiB; on {own[0]['machine']}, {own[0]['date']}. "
        "Images/s: one by one, with all cores.",
    ]
    return "\n".join(lines) + "\n"


def _mean_and_spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def _run(command: list) -> None:
    words = [str(word) for word in command]
    print(f"$ {shlex.join(words)}", flush=True)
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
