"""Measures `diffad update`: a model of half of the good images, the same updated with the other half, and one of all.

    python training/benchmarks/update.py DATA/grid DATA/screw --runs runs/update

Models are of the profile `gaussian` with the default settings. The halves are drawn by a seed. Also simulated is what becomes
of the false-alarm rate when parts that were chosen because of their scores calibrate. Appends a line per model to
results/update.jsonl, and renders the tables of model_cards/update.md.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from diffad.data import training_samples
from diffad.pipeline_saving import MOMENTS
from diffad.scoring.conformal import conformal_threshold
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results
from diffad_training.kept_moments import image_file

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "training" / "benchmarks" / "results" / "update.jsonl"
CARD = ROOT / "model_cards" / "update.md"
MODELS = {"half": "half of the images", "updated": "updated with the other half", "all": "trained on all"}
RATE = 0.05
RULES = {
    "drawn": "good parts drawn at random",
    "passed": "good parts that were called good",
    "rejected": "drawn at random, and all wrongly rejected parts of twice as many",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Updates and full trainings.", allow_abbrev=False)
    parser.add_argument("data", nargs="*", type=Path, help="folders in MVTec layout")
    parser.add_argument("--runs", type=Path, default=Path("runs/update"), help="folder for models")
    parser.add_argument("--seed", type=int, default=0, help="of the halves and of training")
    parser.add_argument("--resolution", type=int, default=256, help="of training")
    options = parser.parse_args(arguments)
    for data in options.data:
        runs = options.runs / f"{data.name}-{options.resolution}-{options.seed}"
        about = {"category": data.name, "resolution": options.resolution, "seed": options.seed}
        for result in measure(data, runs, options.seed, options.resolution):
            append_result(RESULTS, {**about, **result})
    update_tables(CARD, RESULTS)


def update_tables(document: Path, results_path: Path) -> None:
    """Renders the tables of a card from kept results."""
    tables = {"models": models_table, "rules": lambda results: rules_table(simulate_rules())}
    results = latest_results(results_path, ("category", "resolution", "seed", "model"))
    fill_tables(document, "update", lambda name: tables[name](results))


def measure(data: Path, runs: Path, seed: int, resolution: int) -> list[dict]:
    """Figures of the three models."""
    halves = _halves(data, runs / "data", seed)
    results, seconds = [], {}
    for model, folder in (("half", halves / "first"), ("all", halves)):
        settings = ["--profile", "gaussian", "--seed", seed, "--resolution", resolution]
        seconds[model] = _diffad("train", folder, "--all-good", "--output", runs / model, *settings)
    shutil.copytree(runs / "half", runs / "updated")
    seconds["updated"] = _diffad("update", runs / "updated", halves / "second")
    for model in MODELS:
        evaluation = runs / f"{model}-evaluation"
        _diffad("evaluate", data, "--model", runs / model, "--output", evaluation, "--no-report")
        metrics = json.loads((evaluation / "metrics.json").read_text())
        scores, point = metrics["scores"]["ensemble"], metrics["operating_point"]
        results.append(
            {
                "model": model,
                "cpu_seconds": round(seconds[model], 1),
                "moments_mb": round((runs / model / MOMENTS).stat().st_size / 1e6, 1),
                "image_auroc": scores["image_auroc"],
                "aupro_30": scores["aupro_30"],
                "calibration_scores": point["held_out_normals"],
                "requested": point["requested_false_alarm_rate"],
                "false_alarms": point["realised_false_alarm_rate"],
                "detection": point["detection_rate"],
                "test_good": metrics["images"]["good"],
            }
        )
    return results


def simulate_rules(scores: int = 200, updates: int = 5, draws: int = 400, seed: int = 0) -> dict[str, list[float]]:
    """Mean share of good parts above the threshold after each of some calibrations, by what was calibrated on.

    Scores of good parts are uniform in [0, 1], of one distribution all along, so that the share above a threshold t is 1 - t.

    Args:
        scores: behind each threshold; where wrongly rejected parts are added, before these.
        updates: calibrations after the first one, each of fresh parts.
        draws: means are over so many.
    """
    rng = np.random.default_rng(seed)
    rates = {rule: np.empty((draws, updates + 1)) for rule in RULES}
    for rule, of_rule in rates.items():
        for draw in range(draws):
            threshold = conformal_threshold(rng.random(scores), RATE)
            of_rule[draw, 0] = 1 - threshold
            for update in range(1, updates + 1):
                parts = rng.random(scores)
                if rule == "passed":
                    parts = threshold * parts
                if rule == "rejected":
                    others = rng.random(2 * scores)
                    parts = np.concatenate([parts, others[others > threshold]])
                threshold = conformal_threshold(parts, RATE)
                of_rule[draw, update] = 1 - threshold
    return {rule: of_rule.mean(axis=0).tolist() for rule, of_rule in rates.items()}


def models_table(results: list[dict]) -> str:
    """Markdown: one row for each category and model."""
    head = ["category, resolution", "model", "CPU seconds", "moments", "image AUROC", "AUPRO", "calibration scores"]
    head += ["false alarms at", "defects found"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    keys = ("category", "resolution", "seed")
    for result in sorted(results, key=lambda result: (*(result[k] for k in keys), list(MODELS).index(result["model"]))):
        alarms = round(result["false_alarms"] * result["test_good"])
        cells = [
            f"{result['category']}, {result['resolution']}",
            MODELS[result["model"]],
            f"{result['cpu_seconds']:.0f}",
            f"{result['moments_mb']:.0f} MB",
            f"{100 * result['image_auroc']:.1f}",
            f"{100 * result['aupro_30']:.1f}",
            str(result["calibration_scores"]),
            f"{result['requested']:.1%}: {alarms} of {result['test_good']}",
            f"{result['detection']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def rules_table(rates: dict[str, list[float]]) -> str:
    """Markdown: the false-alarm rate of each rule after each calibration."""
    updates = len(next(iter(rates.values())))
    lines = ["| calibrated on | at first | " + " | ".join(f"update {i}" for i in range(1, updates)) + " |"]
    lines.append("|---" * (updates + 1) + "|")
    for rule, of_rule in rates.items():
        lines.append(f"| {RULES[rule]} | " + " | ".join(f"{rate:.1%}" for rate in of_rule) + " |")
    return "\n".join(lines) + "\n"


def _halves(data: Path, folder: Path, seed: int) -> Path:
    """Good training images in the folders `first` and `second`, as many in each give or take one."""
    shutil.rmtree(folder, ignore_errors=True)
    paths = [image_file(sample) for sample in training_samples(data)]
    order = np.random.default_rng(seed).permutation(len(paths))
    for place, index in enumerate(order):
        half = folder / ("first" if place < (len(paths) + 1) // 2 else "second")
        half.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths[index], half / paths[index].name)
    return folder


def _diffad(*arguments: object) -> float:
    """Runs a command and returns the CPU seconds that it took, which hardly depend on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "diffad.cli", *map(str, arguments)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
