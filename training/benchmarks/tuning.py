"""Measures what `diffad tune` gains: 10 draws of 5 defective test images tune a model, all other test images judge it.

    python training/benchmarks/tuning.py --data_root DATA_ROOT --models runs/screw runs/magnetic_tile

The terms' maps of all test images are made once. Metrics are means over the draws, with maps at half the model's resolution;
untuned and tuned score are measured on the same images. Good images are the model's own held-out ones that set no threshold.
Prints a table and keeps the results in training/benchmarks/results/tuning.jsonl.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.data import evaluation_samples
from diffad.evaluation.counts import count_images, count_pixels
from diffad.evaluation.measured_terms import GoodImages, MeasuredTerms, measure
from diffad.evaluation.sweep import sweep, sweep_metrics
from diffad.evaluation.tuning import AREAS, ScoreCandidate
from diffad.jobs.tune import Tuning, choose_score
from diffad.scoring.terms import weighted_mean
from diffad_training.benchmarks.records import append_result
from diffad_training.good_images import group_names, held_out_samples

METRICS = ("image_auroc", "image_ap", "pixel_ap", "aupro_30")
RESULTS = Path(__file__).parent / "results" / "tuning.jsonl"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the gain of tuning.", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="folders named like their categories")
    parser.add_argument("--data_root", type=Path, required=True, help="holds a folder of test images for each category")
    parser.add_argument("--draws", type=int, default=10, help="of defective images")
    parser.add_argument("--defects", type=int, default=5, help="defective images of a draw")
    parser.add_argument("--without_masks", action="store_true", help="tune by labels alone")
    options = parser.parse_args(arguments)
    print(f"| model | changed | {' | '.join(METRICS)} |\n|{'---|' * (2 + len(METRICS))}")
    for model in options.models:
        defective, good = measure_test_images(model, options.data_root / model.name)
        present = DiffADPipeline.from_pretrained(model).calibration.score_config
        map_now, verdict_now = ScoreCandidate(present.weights, present.verdict_area), present.verdict
        result = measure_gain(defective, good, map_now, verdict_now, options.draws, options.defects, not options.without_masks)
        result |= {"model": model.name, "defects": options.defects, "masks": not options.without_masks}
        append_result(RESULTS, result)
        print(table_row(result), flush=True)


def measure_test_images(model: Path, data: Path) -> tuple[MeasuredTerms, MeasuredTerms]:
    """Defective and good test images, each beside the good images that choose."""
    pipe = DiffADPipeline.from_pretrained(model)
    held_out = held_out_samples(model, str(data))
    known = GoodImages([sample.read for sample in held_out], groups=group_names(held_out))
    samples = evaluation_samples(data)
    kinds = ([sample for sample in samples if sample.is_defective == is_defective] for is_defective in (True, False))
    defective, good = (measure(pipe, known, of_kind, AREAS) for of_kind in kinds)
    return defective, good


def measure_gain(
    defective: MeasuredTerms,
    good: MeasuredTerms,
    map_now: ScoreCandidate,
    verdict_now: Mapping[str, float],
    draws: int,
    defects: int,
    with_masks: bool = True,
) -> dict:
    """Metrics of the untuned and of the tuned score, `(draws,)` each, and what was chosen."""
    images = len(defective.masks)
    drawn = [np.random.default_rng(draw).choice(images, defects, replace=False) for draw in range(draws)]
    tunings = [choose_score(part_of(defective, chosen, with_masks), map_now, verdict_now) for chosen in drawn]
    used = np.ones((draws, images + len(next(iter(good.maps.values()))) - good.count))
    for of_draw, chosen in zip(used, drawn, strict=True):
        of_draw[chosen] = 0
    untuned = ScoreCandidate(verdict_now, map_now.area)
    before = judge(defective, good, [map_now] * draws, [untuned] * draws, used)
    after = judge(defective, good, [t.anomaly_map.chosen for t in tunings], [t.verdict.chosen for t in tunings], used)
    return {"untuned": before, "tuned": after, "chosen": [described(tuning) for tuning in tunings]}


def part_of(measured: MeasuredTerms, chosen: Sequence[int], with_masks: bool) -> MeasuredTerms:
    """Only some of the defective images."""
    kept = np.concatenate([np.arange(measured.count), measured.count + np.asarray(chosen)])
    return replace(
        measured,
        maps={term: maps[kept] for term, maps in measured.maps.items()},
        highest={key: values[kept] for key, values in measured.highest.items()},
        masks=measured.masks[chosen] if with_masks else None,
    )


def judge(
    defective: MeasuredTerms,
    good: MeasuredTerms,
    maps: Sequence[ScoreCandidate],
    verdicts: Sequence[ScoreCandidate],
    used: np.ndarray,
) -> dict[str, list[float]]:
    """METRICS of a map and a verdict for each of D draws, on the images `(D, N)` that it uses; defective ones come first."""
    masks = np.concatenate(
        [defective.masks, np.zeros((used.shape[1] - len(defective.masks), *defective.masks.shape[1:]), bool)]
    )
    is_defective = np.arange(used.shape[1]) < len(defective.masks)
    metrics: dict[str, list[float]] = {name: [0.0] * len(used) for name in METRICS}
    for tried, kind in ((maps, "pixel"), (verdicts, "image")):
        for candidate in {described_candidate(candidate): candidate for candidate in tried}.values():
            draws = [i for i, other in enumerate(tried) if other == candidate]
            if kind == "pixel":
                fused = [
                    sum(weight * part.maps[term][part.count :] for term, weight in candidate.weights.items())
                    for part in (defective, good)
                ]
                counts = count_pixels(np.concatenate(fused), masks)
            else:
                counts = count_images(
                    np.concatenate([verdict_scores(part, candidate) for part in (defective, good)]), is_defective
                )
            for name, values in sweep_metrics(sweep(counts, used[draws])).items():
                name = name if name.startswith("aupro") else f"{kind}_{name}"
                for draw, value in zip(draws, values, strict=True):
                    if name in METRICS:
                        metrics[name][draw] = float(value)
    return metrics


def verdict_scores(measured: MeasuredTerms, candidate: ScoreCandidate) -> np.ndarray:
    """Scores of the test images."""
    of_terms = {term: torch.from_numpy(measured.highest[term, candidate.area][measured.count :]) for term in candidate.weights}
    return weighted_mean(of_terms, candidate.weights).numpy()


def described_candidate(candidate: ScoreCandidate) -> str:
    return " + ".join(f"{weight:.3g} {term}" for term, weight in candidate.weights.items()) + f" @ {candidate.area:g}"


def described(tuning: Tuning) -> dict[str, str | None]:
    """What a draw changed, None where nothing."""
    choices = {"map": tuning.anomaly_map, "verdict": tuning.verdict}
    return {name: described_candidate(choice.chosen) if choice.is_changed else None for name, choice in choices.items()}


def table_row(result: Mapping) -> str:
    """A line of Markdown: draws that changed map and verdict, and untuned -> tuned percent of every metric."""
    changed = "/".join(str(sum(choice[name] is not None for choice in result["chosen"])) for name in ("map", "verdict"))
    cells = [f"{100 * np.mean(result['untuned'][name]):.1f} -> {100 * np.mean(result['tuned'][name]):.1f}" for name in METRICS]
    return f"| {result['model']} | {changed} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
