"""Chooses the share of its peak at which a defect's mask ends, on synthetic defects; no real defect is ever read.

    python training/benchmarks/mask_edges.py --models runs/screw runs/magnetic_tile

For every model, synthetic defects are put on its own held-out good images. Masks at the default false-alarm rate are compared
with what was changed: pixel F1 as a share of the best single threshold's, for every edge of EDGES and for the pixels above the
threshold alone (`none`). The edge with the highest mean over the models is printed last.
"""

import argparse
from pathlib import Path

import numpy as np
from diffad import DiffADPipeline, localization_metrics
from diffad.evaluation.metrics import mask_metrics
from diffad_training.benchmarks.held_out import held_out_images
from diffad_training.benchmarks.synthetic_defects import defect_set

EDGES = (None, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)
DEFECTS, GOOD_IMAGES = 40, 20  # images of each model, at most
SEED = 12


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Choose the edge of masks.", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="pipelines written by train.py")
    options = parser.parse_args(arguments)
    print("| model | " + " | ".join("none" if edge is None else f"{edge:g}" for edge in EDGES) + " |")
    print("|---" * (len(EDGES) + 1) + "|")
    shares = []
    for model in options.models:
        shares.append(shares_of(model))
        print(f"| {model.name} | " + " | ".join(f"{100 * share:.1f}" for share in shares[-1]) + " |", flush=True)
    mean = np.mean(shares, axis=0)
    print("| mean | " + " | ".join(f"{100 * share:.1f}" for share in mean) + " |")
    print(f"\nbest: {EDGES[int(np.argmax(mean))]}")


def shares_of(model: Path) -> list[float]:
    """`seg_f1_share` of a model's masks for each of EDGES."""
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    good_images = held_out_images(model, pipe.image_size)
    defects = list(defect_set(good_images, DEFECTS, SEED))
    good_images = good_images[:GOOD_IMAGES]
    output = pipe(good_images + [defect.defective for defect in defects])
    truth = np.stack([np.zeros(pipe.image_size, bool)] * len(good_images) + [defect.mask for defect in defects])
    best_f1 = localization_metrics(np.stack(output.anomaly_maps), truth)["pixel_f1_max"]
    shares = []
    for edge in EDGES:
        pipe.calibration.register_to_config(mask_edge=edge)
        of_images = zip(output.anomaly_maps, output.pixel_thresholds.tolist(), output.is_defective.tolist(), strict=True)
        masks = [pipe.calibration.mask(*of_image) for of_image in of_images]
        shares.append(mask_metrics(np.stack(masks), truth, best_f1)["seg_f1_share"])
    return shares


if __name__ == "__main__":
    main()
