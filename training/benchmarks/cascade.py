"""What a cascade would be worth: a fast profile passes clearly good parts, the model's own score judges the rest.

    python training/benchmarks/cascade.py --data_root DATA --runs RUNS --categories grid screw --first fast

An image passes if its first score is below a quantile of those of the good images behind the score's statistics. All others are
ranked by the model's own score, above all that passed. That is one score like any other, so that its thresholds from held-out
images keep their guarantee. Appends a line for each category to training/benchmarks/results/cascade.jsonl, and renders the
table of the speed card. How long a stage takes is taken from the comparison of precisions (precisions.py) of the same model.
"""

import argparse
import datetime
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffad import DiffADPipeline
from diffad.data import Sample, evaluation_samples
from diffad.scoring.conformal import conformal_threshold, default_rate
from diffad_training.benchmarks import precisions
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results
from diffad_training.config import load_config
from diffad_training.fitting import statistics_samples, threshold_samples
from diffad_training.good_images import held_out_samples
from sklearn.metrics import roc_auc_score

RESULTS = precisions.RESULTS.with_name("cascade.jsonl")
CARD = precisions.CARD
IDENTITY = ("category", "first", "seed")
QUANTILES = (0.0, 0.5, 0.8, 0.95)  # of good first scores, below which parts pass; 0 is the model's own score alone
VARIANT = "openvino, bf16"  # of the times


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--data_root", type=Path)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--categories", nargs="+")
    parser.add_argument("--first", default="fast", help="profile of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables_only", action="store_true", help="render the table from the kept results")
    options = parser.parse_args(arguments)
    if not options.tables_only:
        for category in options.categories:
            model, data = options.runs / f"{category}-cpu-small-{options.seed}", options.data_root / category
            words = ["--data_root", "DATA", "--runs", "RUNS", "--categories", category, "--first", options.first]
            command = f"python training/benchmarks/cascade.py {shlex.join([*words, '--seed', str(options.seed)])}"
            facts = {"category": category, "first": options.first, "seed": options.seed, "command": command}
            rows = measure(model, options.first, data)
            append_result(RESULTS, {**facts, "date": str(datetime.date.today()), "rows": rows})
    update_table(CARD, RESULTS, precisions.RESULTS)


def measure(model: Path, first: str, data: Path) -> list[dict[str, float]]:
    """A row for each of the quantiles."""
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    config = load_config(str(model / "training_config.json"), {})
    samples, thresholds = evaluation_samples(data), threshold_samples(model)
    statistics = statistics_samples(held_out_samples(model), config)
    scores = {
        profile: [_scores(pipe, profile, images) for images in (statistics, thresholds, samples)]
        for profile in (first, pipe.profile_names[0])
    }
    is_defective = np.array([sample.is_defective for sample in samples])
    (of_statistics, *first_scores), (_, *own_scores) = scores.values()
    limits = [-np.inf if q == 0 else float(np.quantile(of_statistics, q)) for q in QUANTILES]
    return [
        {"quantile": quantile, **worth(first_scores, own_scores, is_defective, limit)}
        for quantile, limit in zip(QUANTILES, limits, strict=True)
    ]


def worth(first: Sequence[np.ndarray], own: Sequence[np.ndarray], is_defective: np.ndarray, limit: float) -> dict[str, float]:
    """What a cascade is worth.

    Args:
        first, own: scores of both stages, each of the images behind the thresholds `(n,)` and of the test images `(N,)`.
        is_defective: `(N,)`.
        limit: of first scores, below which an image passes.
    """
    ranks = cascaded(np.concatenate(first), np.concatenate(own), limit)
    good, test = ranks[: len(first[0])], ranks[len(first[0]) :]
    exceeds = test > conformal_threshold(good, default_rate(len(good)))
    goes_on = first[1] >= limit
    return {
        "image AUROC": float(roc_auc_score(is_defective, test)),
        "found": float(exceeds[is_defective].mean()),
        "false alarms": float(exceeds[~is_defective].mean()),
        "good parts that go on": float(goes_on[~is_defective].mean()),
        "defective parts that pass": float((~goes_on)[is_defective].mean()),
    }


def cascaded(first: np.ndarray, own: np.ndarray, limit: float) -> np.ndarray:
    """Ranks `(N,)` of the scores that a cascade gives: those that pass by the first score, above them the rest by their own.

    Equal scores share a rank, so that comparisons of ranks are those of scores.
    """
    goes_on = first >= limit
    pairs = np.stack([goes_on, np.where(goes_on, own, first)], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].ravel()


def update_table(card: Path, results: Path, times: Path) -> None:
    """Renders the table between the card's markers from the newest results."""
    fill_tables(card, "cascade", lambda _: table(latest_results(results, IDENTITY), milliseconds(times)))


def milliseconds(times: Path) -> dict[tuple[str, str], float]:
    """Time of an image, from file to verdict, by category and profile."""
    return {
        (result["category"], result["profile"]): 1000 / result["compared"][VARIANT]["images/s"]
        for result in latest_results(times, precisions.IDENTITY)
        if VARIANT in result["compared"]
    }


def table(results: Sequence[dict], times: dict[tuple[str, str], float]) -> str:
    """Markdown: a row for each category and quantile; the time is that of a good part."""
    columns = ("image AUROC", "found", "false alarms", "good parts that go on", "defective parts that pass")
    lines = [f"| category | first stage | passes below the quantile | {' | '.join(columns)} | ms a good part |"]
    lines.append("|---" * (4 + len(columns)) + "|")
    for result in results:
        stages = [times.get((result["category"], profile)) for profile in (result["first"], "balanced")]
        for row in result["rows"]:
            cells = [f"{100 * row[column]:.1f}" for column in columns]
            is_alone = row["quantile"] == 0
            name = "none" if is_alone else f"`{result['first']}`"
            cells.append("" if None in stages else f"{mean_time(*stages, row['good parts that go on'], is_alone):.0f}")
            quantile = "" if is_alone else f"{row['quantile']:g}"
            lines.append(f"| {result['category']} | {name} | {quantile} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean_time(first: float, own: float, share: float, is_alone: bool) -> float:
    """Of an image, if a share of them goes on to the second stage; `is_alone` is the second stage by itself."""
    return own if is_alone else first + share * own


def _scores(pipe: DiffADPipeline, profile: str, samples: Sequence[Sample]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few calibration images
        return pipe([sample.read for sample in samples], profile=profile, map_size=(64, 64)).image_scores


if __name__ == "__main__":
    main()
