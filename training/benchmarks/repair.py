"""Measures repair where the truth is known, and on real defects.

    python training/benchmarks/repair.py --data_root DATA --models runs/screw-cpu-small-0 runs/magnetic_tile-cpu-small-0

Synthetic defects are put on good TEST images, which no choice has seen, so that the true image is known: PSNR, SSIM and the
distance of features inside the defect (repair) and outside (preservation), Eq. 12, time and UNet passes, for every method. On
real test images: how many defective ones score as normal after repair, and how much of good ones is changed.
Appends one line per model to training/benchmarks/results/repair.jsonl and renders the tables between the markers of
model_cards/repair.md from it.
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.data import evaluation_samples
from diffad.imaging.maps import resize_map
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import single_batch
from diffad.repair.fill import fill_from_surroundings
from diffad.repair.presets import PRESETS
from diffad_training.benchmarks.records import append_result
from diffad_training.benchmarks.repair_tables import table, update_tables
from diffad_training.benchmarks.synthetic_defects import SyntheticDefect, defect_set
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "training" / "benchmarks" / "results" / "repair.jsonl"
CARD = ROOT / "model_cards" / "repair.md"
# Fewer gradient steps than the paper's 500, which take five times as long.
METHODS = {
    "diffad": {"preset": "default"},
    "Algorithm 1": {"preset": "paper", "num_steps": 100},
    "gradient descent": {"preset": "gradient_descent", "num_steps": 30},
    "partial diffusion, t = 100": {"preset": "partial_diffusion", "timestep": 100},
    "partial diffusion, t = 200": {"preset": "partial_diffusion", "timestep": 200},
}
Method = Callable[[np.ndarray], np.ndarray]  # repairs an image (H, W, 3) uint8
CHANGED = 2  # grey levels above which a pixel counts as changed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark repair.", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="pipelines written by train.py")
    parser.add_argument("--data_root", type=Path, required=True, help="folder of categories in MVTec layout")
    parser.add_argument("--synthetic", type=int, default=10, help="synthetic defects of each category")
    parser.add_argument("--real", type=int, default=60, help="real defective and good images of each category, at most")
    parser.add_argument("--seed", type=int, default=101)
    options = parser.parse_args(arguments)
    for model in options.models:
        pipe = DiffADPipeline.from_pretrained(model)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        pipe.set_progress_bar_config(disable=True)
        category = Path(json.loads((model / "training_config.json").read_text())["data"]).name
        result = run(pipe, options.data_root / category, options.synthetic, options.real, options.seed)
        record = {
            "category": category,
            "seed": options.seed,
            "date": datetime.date.today().isoformat(),
            "machine": f"{torch.get_num_threads()} threads on {os.cpu_count()} cores {platform.machine()}, {pipe.device.type}",
            **result,
        }
        append_result(RESULTS, record)
        print(table(record))
    update_tables(CARD, RESULTS)


def run(pipe: DiffADPipeline, data: Path, synthetic: int, real: int, seed: int) -> dict:
    """All figures of one category."""
    samples = evaluation_samples(data)
    good = [sample for sample in samples if not sample.is_defective]
    defective = [sample for sample in samples if sample.is_defective]
    rng = np.random.default_rng(seed)
    good_images = [_pixels(good[i].read(), pipe) for i in rng.permutation(len(good))]
    defects = list(defect_set(good_images, synthetic, seed))
    methods: dict[str, Method] = {"nothing": lambda image: image, "fill": lambda image: fill(pipe, image)}
    methods |= {name: _repair(pipe, settings) for name, settings in METHODS.items()}
    chosen = [defective[i] for i in rng.permutation(len(defective))[:real]]
    return {
        "synthetic": {name: measure(pipe, method, defects, name) for name, method in methods.items()},
        "synthetic_images": len(defects),
        "real": {
            "defective": real_defects(pipe, [sample.read() for sample in chosen]),
            "good": changes_of_good_images(pipe, [Image.fromarray(image) for image in good_images[:real]]),
        },
    }


def measure(pipe: DiffADPipeline, method: Method, defects: list[SyntheticDefect], name: str) -> dict:
    """Median and worst decile of every figure over the defects, and means of the costs."""
    rows = []
    passes = UNetPasses(pipe)
    started = time.perf_counter()
    repaired = [method(defect.defective) for defect in tqdm(defects, desc=name, mininterval=2)]
    seconds = (time.perf_counter() - started) / len(defects)
    unet_passes = passes.stop()
    for defect, image in zip(defects, repaired):
        rows.append(compare(pipe, defect, image))
    summary = {}
    for key, higher_is_better in COLUMNS.items():
        values = np.array([row[key] for row in rows])
        summary[key] = {
            "median": float(np.median(values)),
            "worst_decile": float(np.quantile(values, 0.1 if higher_is_better else 0.9)),
        }
    return {
        **summary,
        "scored_normal": float(np.mean([row["scored_normal"] for row in rows])),
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
}


def compare(pipe: DiffADPipeline, defect: SyntheticDefect, repaired: np.ndarray) -> dict[str, float]:
    """Repair inside the defect against the true image, preservation outside against the input."""
    mask = defect.mask
    similarity = {
        name: structural_similarity(repaired, reference, channel_axis=2, full=True)[1].mean(axis=2)
        for name, reference in (("inside", defect.normal), ("outside", defect.defective))
    }
    features = {
        name: pipe.feature_extractor(single_batch(image, pipe.device))
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
        "scored_normal": not output.is_defective[0],
    }


def psnr(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images `(H, W, 3)` over the pixels of a mask; equal pixels give 99."""
    error = np.square(image[mask].astype(float) - reference[mask]).mean()
    return min(99.0, 10 * np.log10(255**2 / error)) if error else 99.0


def fill(pipe: DiffADPipeline, image: np.ndarray) -> np.ndarray:
    """The plainest repair: what our region marks, continued smoothly from its surroundings."""
    output = pipe(image)
    if not output.is_defective[0]:
        return image
    method = PRESETS["default"]
    anomaly_map = torch.from_numpy(output.anomaly_maps[0])[None]
    threshold = torch.from_numpy(output.pixel_thresholds)
    region = method.find_region(anomaly_map, threshold, method.peak_share)
    filled = fill_from_surroundings(single_batch(image, pipe.device).cpu(), region)[0]
    return ((filled + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def real_defects(pipe: DiffADPipeline, images: list[Image.Image]) -> dict:
    """Of real defective images: how many are found, and how many score as normal before and after."""
    before = pipe(images).is_defective
    repaired = pipe.reconstruct(images).images
    after = pipe(repaired).is_defective
    return {
        "images": len(images),
        "normal_before": float((~before).mean()),
        "normal_after": float((~after).mean()),
        "found_then_normal": float((~after[before]).mean()) if before.any() else float("nan"),
    }


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


def _repair(pipe: DiffADPipeline, settings: dict) -> Method:
    return lambda image: np.asarray(pipe.reconstruct(image, **settings).images[0])


def _pixels(image: Image.Image, pipe: DiffADPipeline) -> np.ndarray:
    return resize_rgb(image, pipe.image_size).transpose(1, 2, 0)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
