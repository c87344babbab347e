"""Measures whether the region that repair replaces holds defects with soft edges, and what of them is left as a veil.

    python training/benchmarks/repair_region.py --data_root DATA --models runs/grid

A map marks the middle of a defect; shades around it fade below any mark. Synthetic defects, three of four with such a shade,
are put on held-out good images of the training data, and what the map marks is replaced by the best content from good images,
without the diffusion model: once as it is marked, once grown at the fine scale alone, once as repair grows it. Appends one line
per model to training/benchmarks/results/repair_region.jsonl and renders the table in model_cards/repair.md from it.
"""

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.repair.inpainting import Inpainting
from diffad.repair.proposals import GrowthLimit, aligned_contents, blend_in, grow_with_contents
from diffad_training.benchmarks.records import append_result, category_of, fill_tables, latest_results, this_machine
from diffad_training.benchmarks.synthetic_defects import KINDS, add_defect, with_shade
from diffad_training.good_images import held_out_samples
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "training" / "benchmarks" / "results" / "repair_region.jsonl"
CARD = ROOT / "model_cards" / "repair.md"
SHARES = (0.003, 0.01, 0.03)  # of the image that the middle of a defect covers, in turn
NEARBY = 16  # pixels around a defect within which the repair is compared with the true image
VEIL_SIGMA = 3.0  # pixels; coarser than texture
METHOD = Inpainting()
REGIONS: dict[str, Sequence[GrowthLimit]] = {
    "as marked": (),
    "grown, fine": METHOD.growth_limits[:1],
    "grown, fine and coarse": METHOD.growth_limits,
}
EDGES = ("soft", "sharp")


class Case(NamedTuple):
    """A good image `(H, W, 3)` uint8, the same with a defect, and the edge of that."""

    normal: np.ndarray
    defective: np.ndarray
    edge: str


class Figures(NamedTuple):
    """Of one repair: shares of the defect's area that the region covers and that it holds beyond the defect; PSNR in dB and
    the root mean square of the smoothed error in grey levels, near the defect."""

    covered: float
    beyond: float
    psnr: float
    veil: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="pipelines written by train.py, with references")
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--defects", type=int, default=24)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    for model in options.models:
        pipe = DiffADPipeline.from_pretrained(model)
        pipe.set_progress_bar_config(disable=True)
        category = category_of(model)
        held_out = held_out_samples(model, str(options.data_root / category))
        size = pipe.scorer.detail_size or pipe.image_size
        images = [resize_rgb(sample.read(), size).transpose(1, 2, 0) for sample in held_out]
        record = {
            "category": category,
            "seed": options.seed,
            "date": datetime.date.today().isoformat(),
            "machine": this_machine(pipe.device),
            "defects": options.defects,
            **measure(pipe, cases(images, options.defects, options.seed)),
        }
        append_result(RESULTS, record)
    update_table(CARD, RESULTS)


def update_table(card: Path, results: Path) -> None:
    """Renders the table between the card's markers from the newest results."""
    fill_tables(card, "repair_region", lambda _: table(latest_results(results, ["category"])))


def cases(images: Sequence[np.ndarray], count: int, seed: int) -> list[Case]:
    """Defects of all kinds and sizes on good images `(H, W, 3)` in turn, three of four with a shade around them."""
    kinds, made = [kind for kind in KINDS if kind != "scratch"], []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        normal, donor = (images[(i + k) % len(images)] for k in (0, 1))
        defective, mask = add_defect(normal, kinds[(i // 3) % len(kinds)], rng, donor, SHARES[i % len(SHARES)])
        edge = EDGES[i % 4 == 3]
        if edge == "soft":
            defective = with_shade(normal, defective, mask, rng)
        made.append(Case(normal, defective, edge))
    return made


def measure(pipe: DiffADPipeline, defects: Sequence[Case]) -> dict:
    """For every edge and region the means of all [`Figures`], and of how many defects that were found they are."""
    references = pipe.references.of_category(None)
    rows: dict[str, list[dict[str, Figures]]] = {edge: [] for edge in EDGES}
    for case in tqdm(defects, desc="defects", mininterval=2):
        output = pipe(case.defective, map_size=pipe.image_size)
        if not output.is_defective[0]:
            continue  # such an image is returned as it is
        threshold = torch.from_numpy(output.pixel_thresholds)
        marked = METHOD.find_region(torch.from_numpy(output.anomaly_maps[0])[None], threshold, METHOD.peak_share)[0]
        normal, image = (_model_input(pixels, pipe.image_size) for pixels in (case.normal, case.defective))
        contents = aligned_contents(image, marked, references, pipe.references.config.turns, METHOD.proposals)
        of_regions = {}
        for name, limits in REGIONS.items():
            region, matched = grow_with_contents(image, marked, contents, limits)
            of_regions[name] = compare(normal, image, region[0] > 0, blend_in(image, region, matched[:1])[0])
        rows[case.edge].append(of_regions)
    return {
        "found": {edge: len(of_edge) for edge, of_edge in rows.items()},
        "figures": {
            edge: {name: Figures(*np.mean([row[name] for row in of_edge], axis=0).tolist())._asdict() for name in REGIONS}
            for edge, of_edge in rows.items()
            if of_edge
        },
    }


def compare(normal: torch.Tensor, defective: torch.Tensor, region: torch.Tensor, repaired: torch.Tensor) -> Figures:
    """The figures of a region `(H, W)` bool and a repaired image `(3, H, W)` in [-1, 1], as are the other two.

    The defect is what it changes by two grey levels or more.
    """
    changed = ((defective - normal).abs().amax(dim=0) * 127.5 >= 2).numpy()  # (H, W)
    held = region.numpy()
    error = (repaired - normal).numpy() * 127.5  # (3, H, W), grey levels
    near = distance_transform_edt(~changed) <= NEARBY
    veil = gaussian_filter(error.mean(axis=0), VEIL_SIGMA)[near]
    return Figures(
        covered=float((held & changed).sum() / changed.sum()),
        beyond=float((held & ~changed).sum() / changed.sum()),
        psnr=float(10 * np.log10(255**2 / max(np.square(error[:, near]).mean(), 1e-6))),
        veil=float(np.sqrt(np.square(veil).mean())),
    )


def _model_input(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """`(3, *size)` in [-1, 1] of an image `(H, W, 3)` uint8."""
    return to_model_range(torch.from_numpy(resize_rgb(Image.fromarray(image), size).copy()))


def table(records: list[dict]) -> str:
    """Markdown table of all categories, edges and regions."""
    columns = ["category", "edge", "defects", "region", "covered", "beyond", "PSNR nearby", "veil, grey levels"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for record in records:
        for edge, of_regions in record["figures"].items():
            for name, figures in of_regions.items():
                cells = [f"{100 * figures[key]:.0f} %" for key in ("covered", "beyond")]
                cells += [f"{figures[key]:.1f}" for key in ("psnr", "veil")]
                titles = [record["category"], edge, str(record["found"][edge]), name]
                lines.append("| " + " | ".join([*titles, *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
