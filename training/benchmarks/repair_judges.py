"""Judges of repair: detectors that it never asked, each with the threshold that 5 % of good images exceed at most."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.data import training_samples
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.scoring.conformal import threshold_rank
from diffad_training.good_images import held_out_samples
from PIL import Image

FALSE_ALARM_RATE = 0.05
CORESET_CANDIDATES = 30_000  # patches, drawn at random, among which PatchCore's coreset is chosen; its time grows with them
# Images to whether each is called defective.
Judge = Callable[[Sequence[Image.Image]], np.ndarray]


def pipeline_judge(model: Path) -> Judge:
    """Another pipeline, with its own calibration."""
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return lambda images: pipe(list(images)).is_defective


def patchcore_judge(model: Path, data: Path, seed: int) -> Judge:
    """anomalib's PatchCore, fitted on the good training images that a pipeline was not calibrated on.

    The held-out ones set its threshold, by the same rank as in diffad, or the highest score where they are too few for it.

    Args:
        model: folder of the pipeline; says which images were held out.
        data: folder in MVTec layout.
    """
    from diffad_training.benchmarks.peers import fit

    held_out = held_out_samples(model)
    names = {sample.name for sample in held_out}
    fitted_on = [sample for sample in training_samples(data) if sample.name not in names]
    patchcore, _ = fit("PatchCore (anomalib)", fitted_on, seed, CORESET_CANDIDATES)
    scores = np.sort(_scores(patchcore, [sample.read() for sample in held_out]))
    threshold = scores[min(threshold_rank(len(scores), FALSE_ALARM_RATE), len(scores)) - 1]
    return lambda images: _scores(patchcore, images) > threshold


@torch.no_grad()
def _scores(model: torch.nn.Module, images: Sequence[Image.Image]) -> np.ndarray:
    """`(N,)` scores of images, one by one, at the size at which peers see them."""
    pixels = [torch.from_numpy(resize_rgb(image, (256, 256)))[None] for image in images]
    return np.array([float(model(to_model_range(one)).pred_score) for one in pixels])
