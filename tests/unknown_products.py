"""A model of two brightnesses that tells parts of any other product, such as stripes, from them."""

import numpy as np
import torch
from diffad import DiffADPipeline, LinearDiscriminant
from tiny_pipeline import category_images, tiny_pipeline

NAMES = ("bright", "dark")


def two_products() -> DiffADPipeline:
    pipe = tiny_pipeline(NAMES, weights={"mahalanobis": 1.0})
    channels = pipe.feature_extractor.config.channels
    discriminant = LinearDiscriminant(channels, NAMES, knows_distances=True)
    images = [image for label in (0, 1) for image in category_images(12, 3, label)]
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
    with torch.no_grad():
        pooled = pipe.feature_extractor(torch.from_numpy(pixels).float() / 127.5 - 1).mean(dim=(2, 3))
    discriminant.fit(pooled.numpy(), np.repeat([0, 1], 12))
    pipe.register_modules(discriminant=discriminant)
    pipe.calibrate([*category_images(30, 4, 0), *category_images(30, 5, 1)], categories=[0] * 30 + [1] * 30)
    return pipe


def stripes(count: int) -> list[np.ndarray]:
    """Images `(32, 32, 3)` of a product that neither is."""
    rows = (np.arange(32) // 2 % 2 * 255).astype(np.uint8)
    return [np.roll(np.broadcast_to(rows[:, None, None], (32, 32, 3)), i, axis=0).copy() for i in range(count)]
