"""Which timestep undoes the noise of the gradient steps (Algorithm 1)? Measured beside the derivation.

    python training/benchmarks/matched_timestep.py --models runs/magnetic_tile-cpu-small-0 runs/screw-cpu-small-0

On synthetic defects on held-out good images: how alike successive directions are, the variance that N_d gradient steps then add
by `added_variance`, and the timestep whose noise level that is; and Algorithm 1 with each of several timesteps. Prints tables
and writes training/benchmarks/results/matched_timestep.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.diffusion.chain import ReverseChain
from diffad.imaging.tensors import single_batch
from diffad.repair.gradient_denoising import (
    GradientDenoising,
    added_variance,
    gradient_step,
    loss_and_gradient,
    matched_timestep,
    unit_direction,
)
from diffad_training.benchmarks.held_out import held_out_images
from diffad_training.benchmarks.repair import psnr
from diffad_training.benchmarks.synthetic_defects import SyntheticDefect, defect_set
from tqdm.auto import tqdm

RESULTS = Path(__file__).parent / "results" / "matched_timestep.json"
TIMESTEPS = (4, 9, 20, 32, 60, 100, 160)
SEED = 21


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the matched timestep of Algorithm 1.", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="pipelines written by train.py")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--num_steps", type=int, default=25, help="gradient steps, N")
    options = parser.parse_args(arguments)
    results = {}
    for model in options.models:
        pipe = DiffADPipeline.from_pretrained(model)
        pipe.set_progress_bar_config(disable=True)
        defects = list(defect_set(held_out_images(model, pipe.image_size), options.images, SEED))
        method = GradientDenoising(num_steps=options.num_steps)
        correlation = float(np.mean([direction_correlation(pipe, defect.defective, method) for defect in defects]))
        variance = added_variance(method.step_size, method.denoise_every, correlation)
        results[model.name] = {
            "correlation": correlation,
            "added_variance": variance,
            "matched_timestep": matched_timestep(pipe.scheduler.alphas_cumprod, variance),
            "timesteps": {t: measure_timestep(pipe, defects, method, t) for t in tqdm(TIMESTEPS, desc=model.name)},
        }
        print(model.name, json.dumps(results[model.name], indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def direction_correlation(pipe: DiffADPipeline, image: np.ndarray, method: GradientDenoising) -> float:
    """Mean correlation between any two of the N_d directions before the first denoising of an image `(H, W, 3)` uint8."""
    x = single_batch(image)  # (1, 3, H, W)
    directions = []
    for _ in range(method.denoise_every):
        _, gradient = loss_and_gradient(x, lambda images: pipe.gaussian(pipe.feature_extractor(images)))
        directions.append(unit_direction(gradient))
        x = gradient_step(x, directions[-1], method.step_size)
    correlations = np.corrcoef(torch.cat(directions).flatten(1).numpy())  # (N_d, N_d)
    return float(correlations[np.triu_indices_from(correlations, k=1)].mean())


def measure_timestep(
    pipe: DiffADPipeline, defects: Sequence[SyntheticDefect], method: GradientDenoising, timestep: int
) -> dict[str, float]:
    """Median PSNR inside and outside the defects, and Eq. 12 before and after, at the nearest timestep of the chain."""
    chain = ReverseChain(pipe.scheduler, method.num_inference_steps).timesteps
    nearest = min(chain, key=lambda t: abs(t - timestep))
    rows = []
    for defect in defects:
        output = pipe.reconstruct(defect.defective, method, timestep=nearest, return_traces=True)
        image, trace = np.asarray(output.images[0]), output.traces[0]
        rows.append(
            {
                "psnr_inside": psnr(image, defect.normal, defect.mask),
                "psnr_outside": psnr(image, defect.normal, ~defect.mask),
                "eq12_before": float(trace[0]),
                "eq12_after": float(trace[-1]),
            }
        )
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
