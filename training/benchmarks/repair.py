"""Measures repair where the truth is known, by the size of the defect, and on real defects.

    python training/benchmarks/repair.py --data_root DATA --models runs/screw --judges runs/screw-gaussian-1

Synthetic defects are put on good TEST images, which no choice has seen, so that the true image is known: PSNR, SSIM and the
distance of features inside the defect (repair) and outside (preservation), Eq. 12, time and UNet passes, for every method. On
real test images: how many defective ones count as normal before and after repair, by the model itself, by another one
(--judges, one for each of --models) and by anomalib's PatchCore (--patchcore), and how much of good ones is changed.
Appends one line per model to training/benchmarks/results/repair.jsonl and renders the tables between the markers of
model_cards/repair.md from it.
"""

import argparse
import datetime
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.data import evaluation_samples
from diffad.imaging.maps import resize_map
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad_training.benchmarks.records import append_result, category_of, this_machine
from diffad_training.benchmarks.repair_judges import Judge, patchcore_judge, pipeline_judge
from diffad_training.benchmarks.repair_methods import SLOW, Method, methods_of
from diffad_training.benchmarks.repair_tables import table, update_tables
from diffad_training.benchmarks.synthetic_defects import SyntheticDefect, defect_set
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "training" / "benchmarks" / "results" / "repair.jsonl"
CARD = ROOT / "model_cards" / "repair.md"
SHARES = (0.005, 0.02, 0.08, 0.35)  # of the image that synthetic defects cover
CHANGED = 2  # grey levels above which a pixel counts as changed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark repair.", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="pipelines written by train.py")
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--judges", nargs="+", type=Path, help="another pipeline of each category, such as of another seed")
    parser.add_argument("--patchcore", action="store_true", help="anomalib's PatchCore judges, too")
    parser.add_argument("--methods", nargs="+", help="of those in repair_methods.py; all but samples by default")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="of the image that synthetic defects cover")
    parser.add_argument("--synthetic", type=int, default=8, help="synthetic defects of each size")
    parser.add_argument("--slow", type=int, help="of these, how many Algorithm 1 repairs; all by default")
    parser.add_argument("--real", type=int, default=60, help="real defective and good images of each category, at most")
    parser.add_argument("--seed", type=int, default=101)
    options = parser.parse_args(arguments)
    if options.judges and len(options.judges) != len(options.models):
        parser.error("--judges must name one pipeline for each of --models")
    for i, model in enumerate(options.models):
        pipe = DiffADPipeline.from_pretrained(model)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        category = category_of(model)
        data = options.data_root / category
        judges: dict[str, Judge] = {"the model": lambda images: pipe(images).is_defective}  # noqa: B023
        if options.judges:
            judges["another model"] = pipeline_judge(options.judges[i])
        if options.patchcore:
            judges["PatchCore"] = patchcore_judge(model, data, options.seed)
        counts = options.synthetic, options.real, options.slow
        result = run(pipe, data, judges, *counts, options.seed, options.methods, options.shares)
        record = {
            "category": category,
            "seed": options.seed,
            "date": datetime.date.today().isoformat(),
            "machine": this_machine(pipe.device),
            **result,
        }
        append_result(RESULTS, record)
        print(table(record))
    update_tables(CARD, RESULTS)


def run(
    pipe: DiffADPipeline,
    data: Path,
    judges: dict[str, Judge],
    synthetic: int,
    real: int,
    slow: int | None,
    seed: int,
    names: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
) -> dict:
    """All figures of one category, of the methods named and of defects that cover these shares of the image.

    Args:
        synthetic, real: defects of each size, real images of either kind.
        slow: defects of each size, the first ones, that the methods of [`SLOW`] repair; None is all.
    """
    samples = evaluation_samples(data)
    good = [sample for sample in samples if not sample.is_defective]
    defective = [sample for sample in samples if sample.is_defective]
    rng = np.random.default_rng(seed)
    good_images = [_pixels(good[i].read(), pipe) for i in rng.permutation(len(good))]
    methods = methods_of(pipe, names)
    chosen = [defective[i] for i in rng.permutation(len(defective))[:real]]
    by_share = {}
    for share in shares:
        defects = list(defect_set(good_images, synthetic, seed, share))
        by_share[str(share)] = {
            name: measure(pipe, method, defects[:slow] if name in SLOW else defects, f"{name}, {share}")
            for name, method in methods.items()
        }
    return {
        "synthetic": by_share,
        "synthetic_images": synthetic,
        "slow_images": synthetic if slow is None else min(slow, synthetic),
        "real": {
            "defective": real_defects(pipe, judges, [sample.read() for sample in chosen]),
            "good": changes_of_good_images(pipe, [Image.fromarray(image) for image in good_images[:real]]),
        },
    }


def measure(pipe: DiffADPipeline, method: Method, defects: list[SyntheticDefect], name: str) -> dict:
    """Median and worst decile of every figure over the defects, and means of the costs."""
    passes = UNetPasses(pipe)
    started = time.perf_counter()
    repaired = [method(defect.defective) for defect in tqdm(defects, desc=name, mininterval=2)]
    seconds = (time.perf_counter() - started) / len(defects)
    unet_passes = passes.stop()
    rows = [compare(pipe, defect, result.image) for defect, result in zip(defects, repaired)]
    summary = {}
    for key, higher_is_better in COLUMNS.items():
        values = np.array([row[key] for row in rows])
        summary[key] = {
            "median": float(np.median(values)),
            "worst_decile": float(np.quantile(values, 0.1 if higher_is_better else 0.9)),
        }
    said = [result.confident for result in repaired if result.confident is not None]
    return {
        **summary,
        "scored_normal": float(np.mean([row["scored_normal"] for row in rows])),
        "confident": float(np.mean(said)) if said else None,
        "seconds": seconds,
        "unet_passes": unet_passes / len(defects),
    }


# Figure to whether higher is better.
COLUMNS = {
    "psnr_inside": True,
    "psnr_outside": True,
    "ssim_inside": True,
    "ssim_outside": True,
    "feature_distance_inside": False,
    "feature_distance_outside": False,
    "mahalanobis": False,
    "changed_of_defect": True,
}


def compare(pipe: DiffADPipeline, defect: SyntheticDefect, repaired: np.ndarray) -> dict[str, float]:
    """Repair inside the defect against the true image, preservation outside against the input."""
    mask = defect.mask
    similarity = {
        name: structural_similarity(repaired, reference, channel_axis=2, full=True)[1].mean(axis=2)
        for name, reference in (("inside", defect.normal), ("outside", defect.defective))
    }
    features = {
        name: pipe.feature_extractor(_model_input(image, pipe))
        for name, image in (("repaired", repaired), ("normal", defect.normal))
    }
    distance = (features["repaired"] - features["normal"]).square().mean(dim=1)  # (1, h, w)
    covered = resize_map(torch.from_numpy(mask)[None].float().to(distance), tuple(distance.shape[-2:]))
    inside = covered > 0.5 if (covered > 0.5).any() else covered > 0
    output = pipe(repaired)
    return {
        "psnr_inside": psnr(repaired, defect.normal, mask),
        "psnr_outside": psnr(repaired, defect.defective, ~mask),
        "ssim_inside": float(similarity["inside"][mask].mean()),
        "ssim_outside": float(similarity["outside"][~mask].mean()),
        "feature_distance_inside": float(distance[inside].mean()),
        "feature_distance_outside": float(distance[covered == 0].mean()),
        "mahalanobis": float(pipe.gaussian(features["repaired"]).mean()),
        "changed_of_defect": float((np.abs(repaired[mask].astype(int) - defect.defective[mask]).max(axis=1) > CHANGED).mean()),
        "scored_normal": not output.is_defective[0],
    }


def psnr(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of images `(H, W, 3)` in 0..255 over the pixels of a mask; equal pixels give 99."""
    error = np.square(image[mask].astype(float) - reference[mask]).mean()
    return min(99.0, 10 * np.log10(255**2 / error)) if error else 99.0


def real_defects(pipe: DiffADPipeline, judges: dict[str, Judge], images: list[Image.Image]) -> dict:
    """Of real defective images: how many each judge calls normal before and after repair, and of those that it had found."""
    repaired = pipe.reconstruct(images)
    figures = {}
    for name, judge in judges.items():
        before, after = np.asarray(judge(images)), np.asarray(judge(repaired.images))
        figures[name] = {
            "normal_before": float((~before).mean()),
            "normal_after": float((~after).mean()),
            "found_then_normal": float((~after[before]).mean()) if before.any() else float("nan"),
        }
    return {"images": len(images), "confident": float(np.mean(repaired.confident)), "judges": figures}


def changes_of_good_images(pipe: DiffADPipeline, images: list[Image.Image]) -> dict:
    """Of good images: the share of pixels that repair changes."""
    repaired = pipe.reconstruct(images).images
    changed = [(np.abs(np.asarray(a, int) - np.asarray(b, int)).max(axis=2) > CHANGED).mean() for a, b in zip(images, repaired)]
    return {
        "images": len(images),
        "changed_pixels": float(np.mean(changed)),
        "untouched": float(np.mean(np.array(changed) == 0)),
    }


class UNetPasses:
    """Counts how often each image went through the UNet."""

    def __init__(self, pipe: DiffADPipeline):
        self.count = 0
        self.handle = pipe.unet.register_forward_hook(self._add)

    def _add(self, module, inputs, output) -> None:
        self.count += len(inputs[0])

    def stop(self) -> int:
        self.handle.remove()
        return self.count


def _pixels(image: Image.Image, pipe: DiffADPipeline) -> np.ndarray:
    """`(H, W, 3)` at the largest size that the score looks at."""
    return resize_rgb(image, pipe.scorer.detail_size or pipe.image_size).transpose(1, 2, 0)


def _model_input(image: np.ndarray, pipe: DiffADPipeline) -> torch.Tensor:
    """`(1, 3, H, W)` of an image `(h, w, 3)` at the model's resolution."""
    return to_model_range(torch.from_numpy(resize_rgb(Image.fromarray(image), pipe.image_size))[None].to(pipe.device))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
