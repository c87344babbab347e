"""Measures how much changes of light, focus and position, in test images only, cost diffad and anomalib's PaDiM and PatchCore.

    python training/benchmarks/robustness.py --data_root DATA --models runs/grid runs/screw
    python training/benchmarks/robustness.py --data_root DATA --models runs/grid --peers "PaDiM (anomalib)"

The models are trained ones; PaDiM and PatchCore are fitted to the same category's training images. Changes are made in the
images' own pixels before anything else. Appends one line for each category, detector and change to results/robustness.jsonl
beside this file, and renders the tables of model_cards/robustness.md from it. Peers need `pip install 'diffad[peers,demo]'`.
"""

import argparse
import dataclasses
import datetime
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from diffad import DiffADPipeline, detection_metrics, localization_metrics
from diffad.data import Sample, evaluation_samples, training_samples
from diffad.evaluation.scored_samples import PROTOCOL_MAP_SIZE, read_truth, score_samples
from diffad.system.memory import return_freed_memory
from diffad_training.benchmarks import peers
from diffad_training.benchmarks.detection import OURS, UNKNOWN
from diffad_training.benchmarks.image_changes import (
    Change,
    as_jpeg,
    blurred,
    shifted,
    under_lamp,
    with_brightness,
    with_gamma,
)
from diffad_training.benchmarks.records import append_result, category_of, fill_tables, latest_results
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "training" / "benchmarks" / "results" / "robustness.jsonl"
CARD = ROOT / "model_cards" / "robustness.md"
METRICS = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP", "aupro_30": "AUPRO"}
IDENTITY = ("category", "detector", "profile", "change")
CORESET_CANDIDATES = 30_000
NONE, SHIFT = "none", "shift of 2 pixels"
CHANGES: dict[str, Change] = {
    NONE: lambda image: image,
    "brightness x 0.8": partial(with_brightness, factor=0.8),
    "brightness x 1.25": partial(with_brightness, factor=1.25),
    "gamma 0.8": partial(with_gamma, gamma=0.8),
    "gamma 1.25": partial(with_gamma, gamma=1.25),
    "lamp from one side, 0.8 to 1.2": partial(under_lamp, difference=0.2),
    "JPEG 60": partial(as_jpeg, quality=60),
    "blur of 1 pixel": partial(blurred, pixels=1),
    SHIFT: partial(shifted, pixels=2),
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a detector says of N images: maps `(N, *PROTOCOL_MAP_SIZE)`, image scores `(N,)`, verdicts `(N,)` or None."""

    maps: np.ndarray
    image_scores: np.ndarray
    called_defective: np.ndarray | None = None


Detector = Callable[[Sequence[Sample], np.ndarray], Scores]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark changes of test images.", allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--models", nargs="+", type=Path, default=[], help="pipelines written by train.py")
    parser.add_argument("--profile", help="of the models; by default their own score")
    parser.add_argument("--peers", nargs="*", default=[], choices=list(peers.PEERS))
    options = parser.parse_args(arguments)
    return_freed_memory()
    for model in options.models:
        category = category_of(model)
        of_peers = {name: partial(fitted_peer, name, options.data_root / category) for name in options.peers}
        for name, build in {OURS: partial(trained_model, model, options.profile), **of_peers}.items():
            for result in measure(build(), options.data_root / category):
                kept = {"category": category, "detector": name, "profile": options.profile if name == OURS else None, **result}
                append_result(RESULTS, {**kept, "date": datetime.date.today().isoformat()})
                print(category, name, result["change"], result["metrics"], flush=True)
    update_tables(CARD, RESULTS)


def measure(detector: Detector, folder: Path) -> Iterator[dict]:
    """Metrics of a detector on a category's test images after every change."""
    unchanged = evaluation_samples(folder)
    for name in CHANGES:
        samples = [with_change(sample, name) for sample in unchanged]
        masks = read_truth(samples, PROTOCOL_MAP_SIZE)
        is_defective = np.array([sample.is_defective for sample in samples])
        scores = detector(samples, masks)
        metrics = metrics_of(scores, is_defective, masks)
        if scores.called_defective is not None:
            metrics["false_alarms"] = float(scores.called_defective[~is_defective].mean())
            metrics["found"] = float(scores.called_defective[is_defective].mean())
        yield {"change": name, "metrics": metrics}


def metrics_of(scores: Scores, is_defective: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """The metrics of [`METRICS`] of N images, `is_defective` `(N,)` and `masks` being the truth."""
    found = detection_metrics(scores.image_scores, is_defective) | localization_metrics(scores.maps, masks)
    return {metric: found[metric] for metric in METRICS}


def with_change(sample: Sample, name: str) -> Sample:
    """A sample whose image is changed when it is read; where that moves it, its mask moves, too."""
    change = CHANGES[name]
    changed = dataclasses.replace(sample, read=lambda: change(sample.read()))
    if sample.mask is None or name != SHIFT:
        return changed
    mask = dataclasses.replace(sample.mask, read=lambda: _shifted_mask(sample.mask.read(), change))
    return dataclasses.replace(changed, mask=mask)


def _shifted_mask(mask: np.ndarray, change: Change) -> np.ndarray:
    levels = Image.fromarray((255 * mask).round().astype(np.uint8)).convert("RGB")
    return np.asarray(change(levels))[..., 0].astype(np.float32) / 255


def trained_model(model: Path, profile: str | None) -> Detector:
    pipe = DiffADPipeline.from_pretrained(model).with_profile(profile)

    def scores(samples: Sequence[Sample], masks: np.ndarray) -> Scores:
        with tempfile.TemporaryDirectory() as scratch:
            scored = score_samples(pipe, samples, masks, PROTOCOL_MAP_SIZE, Path(scratch))
            return Scores(np.array(scored.maps), scored.image_scores, scored.called_defective)

    return scores


def fitted_peer(name: str, folder: Path) -> Detector:
    model, _ = peers.fit(name, training_samples(str(folder)), seed=0, candidates=CORESET_CANDIDATES)
    return lambda samples, masks: Scores(*peers.score(model, samples))


def update_tables(card: Path, kept: Path) -> None:
    """Renders the tables of a card from kept results; those of categories without any are empty."""
    results = latest_results(kept, IDENTITY)
    fill_tables(card, "robustness", lambda category: table([r for r in results if r["category"] == category]))


def table(results: Sequence[dict]) -> str:
    """Markdown: what each change costs each detector in points, below what it has without a change."""
    if not results:
        return ""
    detectors = list(dict.fromkeys((result["detector"], result["profile"]) for result in results))
    titles = [f"{detector}, {profile}" if profile else detector for detector, profile in detectors]
    lines = [
        "| change | " + " | ".join(titles) + " | good parts called defective, defects found |",
        "|---" * (len(titles) + 2) + "|",
    ]
    of = {(r["change"], r["detector"], r["profile"]): r["metrics"] for r in results}
    for change in dict.fromkeys(result["change"] for result in results):
        cells = []
        for key in detectors:
            if (change, *key) not in of:  # the run was stopped
                cells.append(UNKNOWN)
                continue
            now, before = of[change, *key], of[NONE, *key]
            points = [100 * now[m] if change == NONE else 100 * (now[m] - before[m]) for m in METRICS]
            cells.append(" / ".join(f"{value:.1f}" if change == NONE else f"{value:+.1f}" for value in points))
        ours = [of[change, *key] for key in detectors if key[0] == OURS and (change, *key) in of]
        cells.append("; ".join(f"{100 * one['false_alarms']:.0f} %, {100 * one['found']:.0f} %" for one in ours) or UNKNOWN)
        lines.append(f"| {change} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
