"""A tiny model of three categories, and images of all of them in turn."""

from diffad import DiffADPipeline
from PIL import Image
from tiny_pipeline import category_images, tiny_pipeline

NAMES = ("nut", "bolt", "washer")
LABELS = [0, 1, 2] * 2


def mixed_images(seed: int = 30) -> list[Image.Image]:
    return [category_images(1, seed + i, label)[0] for i, label in enumerate(LABELS)]


def three_products(**score_settings) -> DiffADPipeline:
    """Calibrated on 19, 20 and 21 images of its categories."""
    pipe = tiny_pipeline(NAMES, smoothing_sigma=1.0, **score_settings)
    good_images = [image for label in range(3) for image in category_images(19 + label, 4, label)]
    pipe.calibrate(good_images, categories=[name for i, name in enumerate(NAMES) for _ in range(19 + i)])
    return pipe
