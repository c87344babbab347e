"""Synthetic defects that rank scores as real defects do: ragged blobs of three kinds and all sizes on images of good parts.

A piece of another good part in a wrong place, a shift of brightness or colour, and a blurred place with coarse noise. What a
score finds of each kind says more than how it looks: no kind is meant to be a picture of a real defect.
"""

from collections.abc import Sequence

import numpy as np
from diffad.imaging.preprocessing import resize_rgb
from PIL import Image
from scipy.ndimage import gaussian_filter

KINDS = ("piece", "shift", "blur")
AREA = (0.0003, 0.04)  # share of the image, log-uniform
STRETCH = (1.0, 5.0)
MIN_CONTRAST = 10.0  # grey levels, root mean square over the defect, below which it could not be seen
MAX_ATTEMPTS = 50
LARGEST_SIDE = 768  # pixels of the images that defects are put on


def likely_defect(
    image: np.ndarray, donor: np.ndarray, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Puts one defect on an image of a good part.

    Args:
        image: `(H, W, 3)` uint8.
        donor: another one of the same shape.
        kind: one of [`KINDS`].

    Returns:
        The defective image and its bool mask `(H, W)`, or None if no attempt was visible, as on an image of one colour.
    """
    paint = {"piece": _piece, "shift": _shift, "blur": _blur}[kind]
    original = image.astype(np.float64)
    for _ in range(MAX_ATTEMPTS):
        opacity = blob(image.shape[:2], rng)
        mask = opacity >= 0.5
        if not mask.any():
            continue
        painted = original + opacity[..., None] * (paint(original, donor, rng) - original)
        defective = painted.clip(0, 255).round().astype(np.uint8)
        if np.sqrt(np.square(defective[mask] - original[mask]).mean()) >= MIN_CONTRAST:
            return defective, mask
    return None


def blob(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Opacity `(H, W)` in [0, 1] of an ellipse of random area, stretch and direction with a ragged edge."""
    height, width = size
    area = np.exp(rng.uniform(*np.log(AREA))) * height * width
    stretch, angle = rng.uniform(*STRETCH), rng.uniform(0, np.pi)
    major, minor = np.sqrt(area * stretch / np.pi), np.sqrt(area / stretch / np.pi)
    y, x = (
        np.mgrid[:height, :width] - np.array([rng.uniform(0.05, 0.95) * height, rng.uniform(0.05, 0.95) * width])[:, None, None]
    )
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    roughness = gaussian_filter(rng.standard_normal(size), max(2.0, 0.35 * minor))
    radius = np.hypot(along / major, across / minor) + 0.25 * roughness / roughness.std()
    return np.clip((1.1 - radius) / 0.1, 0, 1)


def _piece(image: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shift = [int(rng.integers(side // 8, side - side // 8)) for side in image.shape[:2]]
    moved = np.roll(donor.astype(np.float64), shift, axis=(0, 1))
    return moved[:, ::-1] if rng.random() < 0.5 else moved


def _shift(image: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    levels = rng.choice([-1, 1]) * rng.uniform(15, 60)
    is_coloured = np.ptp(image, axis=2).mean() > 2
    return image + (3 * levels * rng.dirichlet(np.ones(3)) if is_coloured and rng.random() < 0.5 else levels)


def _blur(image: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = min(image.shape[:2]) / 256
    blurred = gaussian_filter(image, (rng.uniform(2, 5) * scale, rng.uniform(2, 5) * scale, 0))
    grain = gaussian_filter(rng.standard_normal(image.shape[:2]), rng.uniform(0.5, 2) * scale)
    return blurred + (rng.uniform(5, 20) * grain / grain.std())[..., None]


def shrunk(image: Image.Image) -> np.ndarray:
    """An RGB image `(H, W, 3)` uint8 to put defects on, smaller where it is larger than any score looks at."""
    scale = min(1.0, LARGEST_SIDE / max(image.size))
    return resize_rgb(image, (round(scale * image.height), round(scale * image.width))).transpose(1, 2, 0)


def likely_defects(images: Sequence[np.ndarray], count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, str, int]]:
    """About `count` defects, as many of each kind, on images of good parts in turn: image, mask, kind, index of the good image.

    A donor is another image of the same shape, or the image itself where there is none. Images on which no defect is visible
    are left out.
    """
    made = []
    for i in range(count):
        # Every image gets every kind, whatever their number.
        index, kind = i // len(KINDS) % len(images), KINDS[i % len(KINDS)]
        rng, image = np.random.default_rng([seed, i]), images[index]
        donors = [other for other in images if other is not image and other.shape == image.shape] or [image]
        if defect := likely_defect(image, donors[rng.integers(len(donors))], kind, rng):
            made.append((*defect, kind, index))
    return made
