"""Good images that a trained model was calibrated on, as benchmarks put defects on them."""

from pathlib import Path

import numpy as np
from diffad.imaging.preprocessing import resize_rgb
from diffad_training.good_images import held_out_samples


def held_out_images(model: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """`(H, W, 3)` uint8 of the good images that the model was calibrated on and neither trained nor fitted on."""
    return [resize_rgb(sample.read(), size).transpose(1, 2, 0) for sample in held_out_samples(model)]
