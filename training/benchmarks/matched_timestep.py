"""Which timestep undoes the noise of the gradient steps (Algorithm 1)? Measured beside the derivation.

    python training/benchmarks/matched_timestep.py --models runs/magnetic_tile-cpu-small-0 runs/screw-cpu-small-0

On synthetic defects on held-out good images: how alike successive directions are, the variance that N_d gradient steps then add
by `added_variance`, and the timestep whose noise level that is; and Algorithm 1 with each of several timesteps. Prints tables
and writes training/benchmarks/results/matched_timestep.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.imaging.preprocessing import single_batch
from diffad.repair.gradient_denoising import added_variance, gradient_step, loss_and_gradient, matched_timestep, unit_direction
from diffad.repair.presets import GradientDenoising
from diffad_training.benchmarks.choose_weights import held_out_images
from diffad_training.benchmarks.repair import psnr
from diffad_training.benchmarks.synthetic_defects import defect_set
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
        recipe = GradientDenoising(num_steps=options.num_steps)
        correlation = float(np.mean([direction_correlation(pipe, defect.defective, recipe) for defect in defects]))
        variance = added_variance(recipe.step_size, recipe.denoise_every, correlation)
        results[model.name] = {
            "correlation": correlation,
            "added_variance": variance,
            "matched_timestep": matched_timestep(pipe.scheduler.alphas_cumprod, variance),
            "timesteps": {t: _try(pipe, defects, recipe, t) for t in tqdm(TIMESTEPS, desc=model.name)},
        }
        print(model.name, json.dumps(results[model.name], indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def direction_correlation(pipe: DiffADPipeline, image: np.ndarray, recipe: GradientDenoising) -> float:
    """Mean correlation between any two of the N_d directions before the first denoising."""
    x = single_batch(image)
    directions = []
    for _ in range(recipe.denoise_every):
        _, gradient = loss_and_gradient(x, lambda images: pipe.gaussian(pipe.feature_extractor(images)))
        directions.append(unit_direction(gradient))
        x = gradient_step(x, directions[-1], recipe.step_size)
    matrix = np.corrcoef(torch.cat(directions).flatten(1).numpy())
    return float(matrix[np.triu_indices_from(matrix, k=1)].mean())


def _try(pipe: DiffADPipeline, defects: list, recipe: GradientDenoising, timestep: int) -> dict[str, float]:
    """Median PSNR inside and outside the defects, and Eq. 12 before and after, with nearest timestep of the 250-step chain."""
    pipe.scheduler.set_timesteps(recipe.num_inference_steps)
    nearest = min(pipe.scheduler.timesteps.tolist(), key=lambda t: abs(t - timestep))
    rows = []
    for defect in defects:
        output = pipe.reconstruct(defect.defective, recipe, timestep=nearest, return_traces=True)
        image = np.asarray(output.images[0])
        rows.append(
            (
                psnr(image, defect.normal, defect.mask),
                psnr(image, defect.normal, ~defect.mask),
                output.traces[0][0],
                output.traces[0][-1],
            )
        )
    inside, outside, before, after = np.median(rows, axis=0)
    return {"psnr_inside": inside, "psnr_outside": outside, "eq12_before": before, "eq12_after": after}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
