"""Chooses the weights of the score terms on synthetic defects on held-out good images; no real defect is ever read.

    python training/benchmarks/choose_weights.py --models runs/screw runs/magnetic_tile

Every mixture of the terms in sixths is judged by the mean of image AUROC, pixel AP and AUPRO over all models, whose own
held-out images are those whose names lie beside it. Among the mixtures within TOLERANCE of the best, the one with
the highest image AUROC is chosen: they localize alike, and parts are kept or thrown away by the image's verdict. Prints the
chosen and the best mixtures and writes all of them to training/benchmarks/results/weights.json.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline, detection_metrics, localization_metrics
from diffad.imaging.maps import resize_map
from diffad.imaging.preprocessing import resize_rgb, single_batch
from diffad.scoring.config import term_of
from diffad.scoring.terms import image_score
from diffad_training.benchmarks.held_out import held_out_samples
from diffad_training.benchmarks.synthetic_defects import defect_set
from tqdm.auto import tqdm

TERMS = ("rgb", "feature", "residual", "mahalanobis")
PARTS = 6
DEFECTS, GOOD_IMAGES = 40, 60  # images of each model, at most
MAP_SIZE = (128, 128)  # of the compared maps: a quarter of the pixels, and the metrics sort them all
SEED = 11
TOLERANCE = 0.2  # percent of the mean, between mixtures that the defects can't tell apart
RESULTS = Path(__file__).parent / "results" / "weights.json"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Choose the weights of the score terms.", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="pipelines written by train.py")
    options = parser.parse_args(arguments)
    measured = [term_maps(model) for model in options.models]
    rows = []
    for shares in tqdm(list(mixtures()), desc="mixtures"):
        weights = {term: share / PARTS for term, share in zip(TERMS, shares) if share}
        metrics = [judge(maps, masks, weights) for maps, masks in measured]
        rows.append({"shares": dict(zip(TERMS, shares)), "per_model": metrics, "mean": float(np.mean(metrics))})
    rows.sort(key=lambda row: -row["mean"])
    chosen = choose(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    models = [model.name for model in options.models]
    results = {"models": models, "seed": SEED, "tolerance": TOLERANCE, "chosen": chosen["shares"], "mixtures": rows}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for row in [chosen, *rows[:10]]:
        print(row["shares"], " ".join(f"{value:.1f}" for value in np.mean(row["per_model"], axis=0)), f"{row['mean']:.2f}")


def choose(rows: list[dict]) -> dict:
    """The mixture with the highest mean image AUROC of those whose `mean` is within TOLERANCE of the best."""
    best = max(row["mean"] for row in rows)
    return max(
        (row for row in rows if row["mean"] >= best - TOLERANCE),
        key=lambda row: np.mean([image for image, _, _ in row["per_model"]]),
    )


def mixtures() -> Iterator[tuple[int, ...]]:
    """All shares of the terms, as whole parts."""
    return (shares for shares in itertools.product(range(PARTS + 1), repeat=len(TERMS)) if sum(shares) == PARTS)


def held_out_images(model: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """`(H, W, 3)` uint8 of the good images that the model was calibrated on and neither trained nor fitted on."""
    return [resize_rgb(sample.read(), size).transpose(1, 2, 0) for sample in held_out_samples(model)]


@torch.no_grad()
def term_maps(model: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each term's standardised map, mean over timesteps, `(N, *MAP_SIZE)`, of good and defective images; their masks."""
    pipe = DiffADPipeline.from_pretrained(model)
    good_images = held_out_images(model, pipe.image_size)
    defects = list(defect_set(good_images, DEFECTS, SEED))
    good_images = good_images[:GOOD_IMAGES]
    images = good_images + [defect.defective for defect in defects]
    maps = {term: [] for term in TERMS}
    for image in tqdm(images, desc=model.name, mininterval=2):
        standardized = pipe.scorer(single_batch(image), terms=TERMS).term_maps
        for term in TERMS:
            mean = torch.stack([values for name, values in standardized.items() if term_of(name) == term]).mean(dim=0)
            maps[term].append(resize_map(mean, MAP_SIZE)[0].numpy())
    masks = np.stack([np.zeros(pipe.image_size, bool)] * len(good_images) + [defect.mask for defect in defects])
    masks = resize_map(torch.from_numpy(masks).float(), MAP_SIZE).numpy() >= 0.5
    return {term: np.stack(maps[term]) for term in TERMS}, masks


def judge(maps: dict[str, np.ndarray], masks: np.ndarray, weights: dict[str, float]) -> tuple[float, float, float]:
    """Image AUROC, pixel AP and AUPRO in percent."""
    combined = sum(weight * maps[term] for term, weight in weights.items())
    image = detection_metrics(image_score(torch.from_numpy(combined)).numpy(), masks.any(axis=(1, 2)))
    pixel = localization_metrics(combined, masks)
    return 100 * image["image_auroc"], 100 * pixel["pixel_ap"], 100 * pixel["aupro_30"]


if __name__ == "__main__":
    main()
