"""Trains and evaluates categories over seeds, keeps every result, and writes the result tables of the documents.

    python training/benchmarks/detection.py --data_root DATA --categories screw magnetic_tile --seeds 0 1
    python training/benchmarks/detection.py --data_root DATA --categories screw magnetic_tile --seeds 0 --unified
    python training/benchmarks/detection.py --data_root DATA --categories screw --variant lite1 --extractor lite1
    python training/benchmarks/detection.py --tables_only

DATA holds one MVTec-layout folder per category. Each run appends one line to results/results.jsonl beside this file, with its
command; the tables between the markers of README.md and the model cards are rendered from that file, beside the peers'
figures of results/peers.json and, for models of all categories, of results/peer_results.jsonl (benchmark_peers.py).
--unified trains one model of all categories and evaluates it on each, with the category given and with it recognised.
--variant names what the further options, which train.py takes, change for an ablation.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from diffad_training.benchmarks import records

TRAINING = Path(__file__).parent.parent
ROOT = TRAINING.parent
RESULTS = TRAINING / "benchmarks" / "results" / "results.jsonl"
PEERS = TRAINING / "benchmarks" / "results" / "peers.json"
PEER_RESULTS = TRAINING / "benchmarks" / "results" / "peer_results.jsonl"
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "aupro_30": "AUPRO"}
SPEED = "images_per_second"
MASKS = "mask F1 (of the best)"  # at the shipped threshold, and its share of the best single threshold's
UNKNOWN = "–"  # in place of a figure that was not kept
# What the summary and its mean are made of, as far as there are results.
CATEGORIES = (
    *("magnetic_tile", "screw", "piped_PA_FVN01_TL", "piped_PA_BDP01_TL", "piped_PA_GLA01_TL"),
    *("grid", "aitex_fab03"),
)
# Variants of the ablation table, and what they change.
VARIANTS = {
    "lite1": "EfficientNet-lite1 features",
    "lite2": "EfficientNet-lite2 features",
    "epsilon": "the UNet predicts the noise, not the image",
    "paper": "paper settings: noise predicted at all timesteps, Eq. 11, only KL standardised, no smoothing, top 64 pixels",
}
OURS = "diffad"
UNIFIED_METRICS = ("aupro_30", "pixel_ap", "image_auroc")
# How a unified model learns the category of an image, and the column title.
UNIFIED = {"given": "unified", "recognised": "unified, category recognised"}
SCORES = {
    "ensemble": "**diffad**",
    "paper (Eq. 11)": "paper's Eq. 11, alpha 0.5",
    "feature": "features alone",
    "kl": "KL alone",
    "rgb": "RGB error alone",
    "residual": "residual alone",
    "mahalanobis": "Gaussian alone",
    "detail": "Gaussian of the enlarged image alone",
    "coarse": "Gaussian of the coarse grid alone",
    "coarse_detail": "Gaussian of the coarse grid of the enlarged image alone",
    "neighbors": "neighbours alone",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark diffad.", allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, help="folder of categories in MVTec layout")
    parser.add_argument("--categories", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--config", default="cpu-small")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where models and evaluations are kept")
    parser.add_argument("--variant", choices=VARIANTS, help="the ablation that the further options make")
    parser.add_argument("--unified", action="store_true", help="one model of all categories instead of one per category")
    parser.add_argument("--tables_only", action="store_true", help="render the tables from the kept results")
    options, training_options = parser.parse_known_args(arguments)
    if not options.tables_only:
        if options.data_root is None or not options.categories:
            parser.error("give --data_root and --categories, or --tables_only")
        runs = run_unified if options.unified else run_each
        for result in runs(options, training_options):
            records.append_result(RESULTS, result)
    write_tables()


def write_tables() -> None:
    """Renders the tables of all documents from the kept results."""
    results, peers, peer_results = latest_results(RESULTS), json.loads(PEERS.read_text()), latest_results(PEER_RESULTS)
    for document in [ROOT / "README.md", *sorted((ROOT / "model_cards").glob("*.md"))]:
        update_tables(document, results, peers, peer_results)


def run_each(options: argparse.Namespace, training_options: list[str]) -> Iterator[dict]:
    """One model per category and seed."""
    for category in options.categories:
        for seed in options.seeds:
            model = options.runs / "-".join(filter(None, [category, options.config, options.variant, str(seed)]))
            train(options, model, options.data_root / category, seed, training_options)
            yield evaluate(options, model, category, seed, training_options)


def run_unified(options: argparse.Namespace, training_options: list[str]) -> Iterator[dict]:
    """One model of all categories per seed, evaluated on each category with its label given and with it recognised."""
    for seed in options.seeds:
        model = options.runs / f"unified-{len(options.categories)}-{options.config}-{seed}"
        categories = ["--categories", f"[{', '.join(options.categories)}]"]
        train(options, model, options.data_root, seed, [*categories, *training_options])
        for category in options.categories:
            for label in UNIFIED:
                result = evaluate(options, model, category, seed, training_options, label)
                yield {**result, "unified": label, "unified_categories": options.categories}


def train(options: argparse.Namespace, model: Path, data: Path, seed: int, training_options: list[str]) -> None:
    """Trains a model; a finished one of the same name is taken as it is, an interrupted one goes on."""
    if not (model / "model_index.json").is_file():
        settings = ["--config", options.config, "--data", data, "--output_dir", model, "--seed", seed]
        settings += ["--resume_from_checkpoint", "latest", *training_options]
        _run([sys.executable, "-m", "accelerate.commands.launch", TRAINING / "train.py", *settings])


def evaluate(
    options: argparse.Namespace, model: Path, category: str, seed: int, training_options: list[str], label: str | None = None
) -> dict:
    """Scores a category's test images and returns the line to keep."""
    evaluation = options.runs / "-".join(filter(None, [model.name, label and category, label, "evaluation"]))
    settings = [options.data_root / category, "--model", model, "--output", evaluation, "--no-report"]
    settings += ["--map_size", "256x256"]  # the peers' protocol, for models of tiles, too
    settings += ["--category", category] if label == "given" else []
    _run([sys.executable, "-m", "diffad.cli", "evaluate", *settings])
    result = json.loads((evaluation / "metrics.json").read_text())
    result.pop("model")
    categories = shlex.join(options.categories) + " --unified" if label else category
    return {
        "category": category,
        "seed": seed,
        "config": options.config,
        "variant": options.variant,
        "options": training_options,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {result['cost']['device']}",
        "command": f"python training/benchmarks/detection.py --data_root DATA --categories {categories} --seeds {seed} "
        + f"--config {options.config} "
        + (f"--variant {options.variant} " if options.variant else "")
        + shlex.join(training_options),
        "training": json.loads((model / "training_summary.json").read_text()),
        **result,
    }


def latest_results(path: Path) -> list[dict]:
    """The newest result of each category, configuration and variant (ours) or peer, seed, and kind of model."""
    return records.latest_results(path, ("category", "config", "variant", "peer", "seed", "unified"))


def update_tables(document: Path, results: list[dict], peers: dict, peer_results: list[dict]) -> None:
    """Fills every `<!-- benchmark:NAME -->` ... `<!-- /benchmark -->`, where NAME is a category, `summary`, `unified` or
    `variants`."""
    if not document.is_file():
        return

    def table(name: str) -> str:
        if name == "variants":
            return variants_table(results)
        own = [result for result in results if not result.get("variant")]
        if name == "summary":
            return summary_table(own, peers)
        if name == "unified":
            return unified_table(own) + unified_peers_table(own, peers, peer_results)
        return category_table(name, own, peers)

    if records.fill_tables(document, "benchmark", table):
        print(f"wrote the tables of {document}")


def category_table(category: str, results: list[dict], peers: dict) -> str:
    """Markdown table of one category: every score of ours as mean (and spread) over seeds, then the peers."""
    own = [result for result in results if result["category"] == category and "unified" not in result]
    if not own:
        raise ValueError(f"no results of {category}: run detection.py on it first")
    lines = [f"| score | {' | '.join(METRICS.values())} | {MASKS} | images/s |", "|---" * (len(METRICS) + 3) + "|"]
    for score, label in SCORES.items():
        if not all(score in result["scores"] for result in own):
            continue
        cells = [_mean_and_spread([100 * result["scores"][score][metric] for result in own]) for metric in METRICS]
        speed = f"{np.mean([r['cost'][SPEED] for r in own]):.1f}" if score == "ensemble" else ""
        of_masks = masks_cell(own) if score == "ensemble" else ""
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {of_masks} | {speed} |")
    for name, figures in peers.items():
        if isinstance(figures, dict) and category in figures:
            cells = [f"{figures[category][peers['columns'].index(column)]:.1f}" for column in (*METRICS, SPEED)]
            lines.append(f"| {name} | " + " | ".join([*cells[:-1], UNKNOWN, cells[-1]]) + " |")
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
        f"Images/s: one by one, with {cost[0]['threads']} thread(s).",
    ]
    return "\n".join(lines) + "\n"


def masks_cell(results: list[dict]) -> str:
    """Pixel F1 of the masks and its share of the best, over seeds; a dash unless every result has kept them."""
    points = [result.get("operating_point", {}) for result in results]
    if not all("seg_f1" in point for point in points):
        return UNKNOWN
    share = np.mean([point["seg_f1_share"] for point in points])
    return f"{_mean_and_spread([100 * point['seg_f1'] for point in points])} ({share:.0%})"


def summary_table(results: list[dict], peers: dict) -> str:
    """Markdown table of the stored score beside the peers: a row per category of the benchmark, then the mean."""
    metrics = ["aupro_30", "pixel_ap", "image_auroc"]
    names = [name for name, figures in peers.items() if isinstance(figures, dict)]
    columns = [f"{METRICS[metric]}: {name}" for metric in metrics for name in ("**diffad**", *names)]
    lines = ["| category | " + " | ".join(columns) + " | seeds |", "|---" * (len(columns) + 2) + "|"]
    means = []
    for category in CATEGORIES:
        own = [result for result in results if result["category"] == category and "unified" not in result]
        if not own:
            continue
        values, cells = [], []
        for metric in metrics:
            figures = [100 * result["scores"]["ensemble"][metric] for result in own]
            theirs = [peers[name][category][peers["columns"].index(metric)] for name in names]
            values += [np.mean(figures), *theirs]
            cells += [_mean_and_spread(figures), *(f"{value:.1f}" for value in theirs)]
        lines.append(f"| {category} | " + " | ".join(cells) + f" | {', '.join(str(r['seed']) for r in own)} |")
        means.append(values)
    average = " | ".join(f"{value:.1f}" for value in np.mean(means, axis=0))
    return "\n".join([*lines, f"| mean of {len(means)} | {average} |  |"]) + "\n"


def variants_table(results: list[dict]) -> str:
    """Markdown table of models trained with other settings, beside the default of the same categories and seeds."""
    single = [result for result in results if "unified" not in result]
    variants = [result for result in single if result.get("variant")]
    columns = ["category", "trained with", *METRICS.values()]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for category in dict.fromkeys(result["category"] for result in variants):
        seeds = {result["seed"] for result in variants if result["category"] == category}
        for variant in (None, *VARIANTS):
            own = [r for r in single if r["category"] == category and r.get("variant") == variant and r["seed"] in seeds]
            if own:
                figures = [_mean_and_spread([100 * r["scores"]["ensemble"][metric] for r in own]) for metric in METRICS]
                label = "**default**" if variant is None else VARIANTS[variant]
                lines.append("| " + " | ".join([category, label, *figures]) + " |")
    return "\n".join(lines) + "\n"


def unified_table(results: list[dict]) -> str:
    """Markdown table of what one model of all categories loses against one model per category, by category and on average."""
    unified = [result for result in results if "unified" in result]
    if not unified:
        raise ValueError("no results of a unified model: run detection.py --unified first")
    categories = list(dict.fromkeys(result["category"] for result in unified))
    columns = [f"{METRICS[metric]}: {kind}" for metric in UNIFIED_METRICS for kind in ("one each", *UNIFIED.values())]
    lines = ["| category | " + " | ".join([*columns, "recognised"]) + " |", "|---" * (len(columns) + 2) + "|"]
    means: list[list[float]] = []
    for category in categories:
        values, cells = [], []
        for metric in UNIFIED_METRICS:
            for kind in (None, *UNIFIED):
                own = [r for r in results if r["category"] == category and r.get("unified") == kind]
                figures = [100 * result["scores"]["ensemble"][metric] for result in own]
                values.append(np.mean(figures) if figures else np.nan)
                cells.append(_mean_and_spread(figures) if figures else "")
        images = [r["class_labels"]["images"] for r in unified if r["category"] == category and r["unified"] == "recognised"]
        values.append(np.mean([100 * counts.get(category, 0) / sum(counts.values()) for counts in images] or [np.nan]))
        lines.append(f"| {category} | " + " | ".join([*cells, "" if np.isnan(values[-1]) else f"{values[-1]:.1f}"]) + " |")
        means.append(values)
    # Over the categories that have every figure, so that the columns compare.
    complete = [values for values in means if np.isfinite(values).all()]
    if complete:
        average = " | ".join(f"{value:.1f}" for value in np.mean(complete, axis=0))
        lines.append(f"| mean of {len(complete)} | {average} |")
    training = unified[0]["training"]
    lines += [
        "",
        f"Percent; seed {', '.join(sorted({str(result['seed']) for result in unified}))}; the unified model was trained in "
        f"{training['seconds'] / 60:.0f} minutes ({training['steps']} steps) on {unified[0]['machine']}, {unified[0]['date']}. "
        "Recognised: share of the test images, defective ones included, whose category was recognised.",
    ]
    return "\n".join(lines) + "\n"


def unified_peers_table(results: list[dict], peers: dict, peer_results: list[dict]) -> str:
    """Markdown table of our unified model beside the peers fitted on all categories at once; empty without peers' results.

    Raises:
        ValueError: if the peers' newest results are of models fitted on different categories.
    """
    fitted = [result for result in peer_results if "unified" in result]
    if not fitted:
        return ""
    groups = {tuple(result["unified_categories"]) for result in fitted}
    if len(groups) > 1:
        raise ValueError(f"peers fitted on different categories do not compare, run benchmark_peers.py on the same: {groups}")
    names = [OURS, *dict.fromkeys(result["peer"] for result in fitted)]
    columns = [(metric, name) for metric in UNIFIED_METRICS for name in names]

    def figures(category: str, metric: str, name: str, at_once: bool) -> list[float]:
        """Percent for every seed; the peers' figures of one model per category are given ones."""
        if name == OURS:
            kind = "given" if at_once else None
            own = [r for r in results if (r["category"], r.get("unified")) == (category, kind)]
            return [100 * result["scores"]["ensemble"][metric] for result in own]
        if at_once:
            return [100 * r["metrics"][metric] for r in fitted if (r["category"], r["peer"]) == (category, name)]
        return [peers[name][category][peers["columns"].index(metric)]] if category in peers[name] else []

    titles = " | ".join(f"{METRICS[metric]}: {name}" for metric, name in columns)
    lines = [f"| all categories at once | {titles} |", "|---" * (len(columns) + 1) + "|"]
    complete = []
    for category in dict.fromkeys(result["category"] for result in results if "unified" in result):
        at_once = [figures(category, *column, True) for column in columns]
        one_each = [figures(category, *column, False) for column in columns]
        lines.append(f"| {category} | " + " | ".join(_mean_and_spread(values) if values else "" for values in at_once) + " |")
        if all(at_once) and all(one_each):
            complete.append([[np.mean(values) for values in row] for row in (at_once, one_each)])
    if complete:
        for label, means in zip(("", ", one model each"), np.mean(complete, axis=0)):
            lines.append(f"| mean of {len(complete)}{label} | " + " | ".join(f"{value:.1f}" for value in means) + " |")
    candidates = {result["coreset_candidates"] for result in fitted} - {None}
    lines += [
        "",
        f"Percent; the peers are anomalib's own code, fitted on {fitted[0]['images']['train']} good images of "
        f"{len(fitted[0]['unified_categories'])} categories, seed {', '.join(sorted({str(r['seed']) for r in fitted}))}, "
        "with the same settings as one model each. diffad is given the category of an image; the peers have no such input."
        + "".join(f" PatchCore chose its coreset among {count:,} patches drawn at random." for count in sorted(candidates)),
    ]
    return "\n" + "\n".join(lines) + "\n"


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
