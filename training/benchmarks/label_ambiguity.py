"""Label ambiguity (paper, Fig. 3): what the pixel score and the feature score see of defects that look like good parts.

    python training/benchmarks/label_ambiguity.py --data_root DATA --models runs/metal_nut --cases flip/000 color/000

A defect with the colours of a good part, or a good part in a wrong pose, is partly explained away by the pixel score; the
feature score is there to see it whole. For every case the picture shows the image, the truth, the maps of KL, of the features
and of the stored score; the table has the recall of each: the share of the defect's pixels that is above 99 % of the good test
images' pixels. Writes the table between the markers of model_cards/label_ambiguity.md and the picture beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.data import Sample, evaluation_samples, load_mask
from diffad.imaging.drawing import outline, resized, save_sheet
from diffad.scoring.config import term_of
from diffad_training.benchmarks import records
from matplotlib import colormaps

ROOT = Path(__file__).parents[2]
CARD = ROOT / "model_cards" / "label_ambiguity.md"
SIZE = (256, 256)
MAPS = ("kl", "feature", "score")
GOOD_QUANTILE = 0.99


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Show label ambiguity on real defects.", allow_abbrev=False)
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="one each, named CATEGORY...")
    parser.add_argument("--cases", nargs="+", required=True, help="DEFECT/NAME of test images, of any of the categories")
    options = parser.parse_args(arguments)
    rows, pictures = [], []
    for model in options.models:
        (category,) = [folder.name for folder in options.data_root.iterdir() if model.name.startswith(folder.name)]
        samples = evaluation_samples(options.data_root / category)
        cases = [sample for sample in samples if any(case in sample.name for case in options.cases)]
        good = [sample for sample in samples if not sample.is_defective]
        of_category = measured(DiffADPipeline.from_pretrained(model), cases, good)
        for case, (maps, recall) in zip(cases, of_category, strict=True):
            name = f"{category}, {case.defect} {Path(case.name).stem}"
            rows.append([name, *(f"{100 * recall[term]:.0f}" for term in MAPS)])
            pictures.append((name, pictures_of(case, maps)))
    save_sheet(CARD.with_suffix(".png"), ("image", "truth", "KL", "features", "score"), pictures)
    lines = ["| defect | recall: KL | recall: features | recall: score |", "|---|---|---|---|"]
    table = "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
    records.fill_tables(CARD, "label_ambiguity", lambda _: table)
    print(table)


def measured(
    pipe: DiffADPipeline, cases: Sequence[Sample], good: Sequence[Sample]
) -> list[tuple[dict[str, np.ndarray], dict[str, float]]]:
    """Of every case its maps `(H, W)` in units of the good images' 99 % quantile, and the recall of each."""
    maps = [all_maps(pipe, sample) for sample in (*good, *cases)]
    limits = {term: np.quantile(np.stack([of_image[term] for of_image in maps[: len(good)]]), GOOD_QUANTILE) for term in MAPS}
    result = []
    for case, of_image in zip(cases, maps[len(good) :], strict=True):
        mask = load_mask(case, SIZE)
        recall = {term: float((of_image[term][mask] > limits[term]).mean()) for term in MAPS}
        result.append(({term: of_image[term] / limits[term] for term in MAPS}, recall))
    return result


def all_maps(pipe: DiffADPipeline, sample: Sample) -> dict[str, np.ndarray]:
    """Maps of KL and features, not standardised, mean over timesteps, and of the score."""
    output = pipe(sample.read, return_term_maps=True, map_size=SIZE)
    names, calibration = list(output.term_maps[0]), pipe.calibration
    maps: dict[str, np.ndarray] = {"score": output.anomaly_maps[0]}
    for term in ("kl", "feature"):
        raw = [
            output.term_maps[0][name] * calibration.term_std[i].item() + calibration.term_mean[i].item()
            for i, name in enumerate(names)
            if term_of(name) == term
        ]
        maps[term] = np.mean(raw, axis=0)
    return maps


def pictures_of(sample: Sample, maps: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Image, truth, and the maps: dark at 0, bright from twice the good images' 99 % quantile on."""
    image = resized(sample.read(), SIZE)
    truth = outline(image, load_mask(sample, SIZE), (255, 0, 0), width=2)
    coloured = [(colormaps["inferno"](np.clip(maps[term] / 2, 0, 1))[..., :3] * 255).astype(np.uint8) for term in MAPS]
    return [image, truth, *coloured]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
