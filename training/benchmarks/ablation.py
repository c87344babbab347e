"""Repeats the paper's ablations of the score on trained models: alpha, KL against RGB, timesteps, normalisation.

    python training/benchmarks/ablation.py --data_root DATA --models runs/screw-cpu-small-0 runs/magnetic_tile-cpu-small-0

Nothing is trained: every row combines the same term maps of the test images in another way. Appends one line per model to
results/ablation.jsonl beside this file, renders the table of model_cards/ablations.md from it, and draws model_cards/alpha.png.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.data import evaluation_samples
from diffad.evaluation.results import measure
from diffad.evaluation.scored_samples import PROTOCOL_MAP_SIZE, read_truth, score_samples
from diffad.scoring.presets import PAPER_ALPHA
from diffad.scoring.terms import image_score, standardize_per_image
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "training" / "benchmarks" / "results" / "ablation.jsonl"
CARD = ROOT / "model_cards" / "ablations.md"
PLOT = ROOT / "model_cards" / "alpha.png"
METRICS = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP", "aupro_30": "AUPRO"}
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
IDENTITY = ("category", "seed")  # of which the newest results are shown
PIXEL_TERMS = {"kl": "KL", "rgb": "RGB error"}

Rows = Iterator[tuple[str, np.ndarray]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ablations of the score.", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="pipelines written by train.py")
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    options = parser.parse_args(arguments)
    for model in options.models:
        settings = json.loads((model / "training_config.json").read_text())
        pipe = DiffADPipeline.from_pretrained(model)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        category = Path(settings["data"]).name
        samples = evaluation_samples(options.data_root / category)
        masks = read_truth(samples, PROTOCOL_MAP_SIZE)
        with tempfile.TemporaryDirectory() as scratch:
            scored = score_samples(pipe, samples, masks, PROTOCOL_MAP_SIZE, Path(scratch))
            maps = {name: scored.term_maps[:, i] for i, name in enumerate(scored.term_map_names)}
            spread = dict(zip(scored.term_map_names, pipe.calibration.term_std.tolist()))
            rows = {}
            for name, combined in score_rows(maps, spread):
                metrics = measure(combined, image_score(torch.from_numpy(combined)).numpy(), scored)
                rows[name] = {metric: float(metrics[metric]) for metric in METRICS}
        append_result(RESULTS, {"category": category, "seed": settings["seed"], "rows": rows})
    results = latest_results(RESULTS, IDENTITY)
    fill_tables(CARD, "ablation", lambda _: table(results))
    draw(results, PLOT)


def score_rows(maps: dict[str, np.ndarray], spread: dict[str, float]) -> Rows:
    """Every ablation's name and combined maps `(N, H, W)`.

    Args:
        maps: term maps `(N, H, W)` by name (`kl@20`, `feature@401`, ...), standardised by calibration images.
        spread: the standard deviations by which they were divided.
    """
    timesteps = sorted({int(name.partition("@")[2]) for name in maps if "@" in name})

    def mean(term: str, chosen=timesteps) -> np.ndarray:
        return sum(maps[f"{term}@{t}"] for t in chosen) / len(chosen)

    for term, label in PIXEL_TERMS.items():
        for alpha in ALPHAS:
            yield alpha_row(label, alpha), alpha * mean(term) + (1 - alpha) * mean("feature")
    for t in timesteps:
        yield f"Eq. 11 at t = {t} only", PAPER_ALPHA * mean("kl", [t]) + (1 - PAPER_ALPHA) * mean("feature", [t])
    yield (
        "Eq. 11, both terms standardised per image",
        PAPER_ALPHA * per_image(maps, "kl", timesteps) + (1 - PAPER_ALPHA) * per_image(maps, "feature", timesteps),
    )
    raw_features = sum(maps[f"feature@{t}"] * spread[f"feature@{t}"] for t in timesteps) / len(timesteps)
    yield (
        "Eq. 11, KL standardised, features as they are (the paper's text)",
        (PAPER_ALPHA * mean("kl") + (1 - PAPER_ALPHA) * raw_features),
    )
    yield (
        "Eq. 11, KL standardised per image, features as they are (released code)",
        (PAPER_ALPHA * per_image(maps, "kl", timesteps) + (1 - PAPER_ALPHA) * raw_features),
    )


def alpha_row(label: str, alpha: float) -> str:
    return f"{label} and features, alpha {alpha:g}"


def per_image(maps: dict[str, np.ndarray], term: str, timesteps: list[int]) -> np.ndarray:
    """Mean over timesteps of maps standardised by their own mean and standard deviation; the earlier scale cancels."""
    return sum(standardize_per_image(torch.from_numpy(np.array(maps[f"{term}@{t}"]))).numpy() for t in timesteps) / len(
        timesteps
    )


def table(results: list[dict]) -> str:
    """Markdown: one row per ablation, its mean over all categories and seeds, and in how many it beats features alone."""
    rows = list(results[0]["rows"])
    shown = [name for name in rows if "alpha" not in name or name in _shown_alphas()]
    columns = [*METRICS.values(), "categories where AUPRO is above features alone"]
    lines = ["| score | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    features_alone = alpha_row("KL", 0.0)
    for name in shown:
        figures = [f"{100 * np.mean([r['rows'][name][metric] for r in results]):.1f}" for metric in METRICS]
        better = sum(r["rows"][name]["aupro_30"] > r["rows"][features_alone]["aupro_30"] for r in results)
        label = "features alone" if name == features_alone else name
        count = "" if name == features_alone else f"{better} of {len(results)}"
        lines.append(f"| {label} | " + " | ".join([*figures, count]) + " |")
    categories = ", ".join(f"{r['category']} (seed {r['seed']})" for r in results)
    return "\n".join([*lines, "", f"Percent, means of {categories}."]) + "\n"


def _shown_alphas() -> list[str]:
    """Of the sweep the plot shows all, the table both ends and the middle."""
    return [alpha_row("KL", 0.0)] + [alpha_row(label, alpha) for label in PIXEL_TERMS.values() for alpha in (0.3, 0.5, 1.0)]


def draw(results: list[dict], path: Path) -> None:
    """Every metric over alpha, one line per category; solid with KL as the pixel term, dashed with the RGB error."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3.6), layout="constrained")
    for axis, (metric, title) in zip(axes, METRICS.items()):
        for index, result in enumerate(results):
            for label, style in zip(PIXEL_TERMS.values(), ("-", "--")):
                values = [100 * result["rows"][alpha_row(label, alpha)][metric] for alpha in ALPHAS]
                name = result["category"] if style == "-" else None
                axis.plot(ALPHAS, values, style, color=f"C{index}", label=name)
        axis.set(title=title, xlabel="alpha: 0 is features alone, 1 the pixel term", ylabel="percent")
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize="small", title="solid KL, dashed RGB error", title_fontsize="small")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
