"""Synthetic defects on images of good parts, so that the true normal image is known.

Five kinds, after those of CutPaste (Li et al. 2021) and DRAEM (Zavrtanik et al. 2021): a foreign texture, a scratch, a stain,
a missing piece and a swapped piece. A defect is a pure function of the images and of the random generator.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter
from skimage import data
from skimage.draw import bezier_curve
from skimage.transform import resize

MIN_CONTRAST = 12.0  # grey levels (root mean square over the defect) below which a defect could not be seen
MAX_ATTEMPTS = 50


def add_defect(
    image: np.ndarray,
    kind: str,
    rng: np.random.Generator,
    donor: np.ndarray | None = None,
    share: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Puts one defect on a good image.

    Args:
        image: `(H, W, 3)` uint8.
        kind: one of [`KINDS`].
        rng: source of everything random.
        donor: another good image of the same shape, from which `swapped` takes its piece; None takes it from `image`.
        share: of the image that the defect covers, but for its soft edge; None draws 0.2 to 4 %. Scratches take no notice.

    Returns:
        The defective image, and its bool mask `(H, W)` of the pixels that were changed.

    Raises:
        RuntimeError: if no attempt was visible, as on an image of one colour.
    """
    paint = KINDS[kind]
    for _ in range(MAX_ATTEMPTS):
        opacity = _scratch_shape(image, rng) if kind == "scratch" else _blob_shape(image, rng, share)
        painted = paint(image.astype(np.float64), rng, image if donor is None else donor)
        blended = image + opacity[..., None] * (painted - image)
        defective = blended.clip(0, 255).round().astype(np.uint8)
        mask = (defective != image).any(axis=2)
        if mask.any():
            contrast = np.sqrt(np.square(defective[mask].astype(float) - image[mask]).mean())
            if contrast >= MIN_CONTRAST:
                return defective, mask
    raise RuntimeError(f"no visible {kind} defect after {MAX_ATTEMPTS} attempts")


def with_shade(normal: np.ndarray, defective: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The defect with a shade or a shine around it that fades like a Gaussian, as of dirt, oil and what lies above the surface.

    Args:
        normal, defective: `(H, W, 3)` uint8.
        mask: bool `(H, W)` of the pixels in which they differ.
        rng: draws how far it reaches (1.5 to 5 % of the shorter side) and how strong it is (10 to 35 % of the brightness).
    """
    reach = rng.uniform(0.015, 0.05) * min(mask.shape)
    strength = rng.choice([-1, 1]) * rng.uniform(0.1, 0.35)
    shade = strength * np.exp(-np.square(distance_transform_edt(~mask) / reach))
    around = (normal * (1 + shade[..., None])).clip(0, 255).round().astype(np.uint8)
    return np.where(mask[..., None], defective, around)


def _texture(image, rng, donor) -> np.ndarray:
    """A texture from elsewhere, at random scale and brightness."""
    texture = _textures()[rng.integers(len(_textures()))]  # (T, T) in [0, 1]
    height, width = image.shape[:2]
    scale = rng.uniform(0.5, 1.5)
    side = min(len(texture), round(scale * max(height, width)))
    top, left = rng.integers(len(texture) - side + 1, size=2)
    pattern = resize(texture[top : top + side, left : left + side], (height, width))[..., None]
    colour = rng.uniform(0, 255, size=3) if _is_coloured(image) else np.full(3, rng.uniform(60, 255))
    return pattern * colour


def _stain(image, rng, donor) -> np.ndarray:
    """One colour over what is below it: oil, rust, dirt."""
    colour = rng.uniform(0, 255, size=3) if _is_coloured(image) else np.full(3, rng.uniform(0, 255))
    cover = rng.uniform(0.4, 1.0)
    return (1 - cover) * image + cover * colour


def _missing(image, rng, donor) -> np.ndarray:
    """The piece's place shows what surrounds the part: the border's colour with its grain."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return border[rng.integers(len(border), size=image.shape[:2])]


def _swapped(image, rng, donor) -> np.ndarray:
    """A piece of a good part in a wrong place: shifted and perhaps mirrored."""
    height, width = image.shape[:2]
    piece = donor.astype(np.float64)
    if rng.random() < 0.5:
        piece = piece[::-1]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    shift = [int(rng.integers(side // 8, side - side // 8)) for side in (height, width)]
    return np.roll(piece, shift, axis=(0, 1))


def _scratch(image, rng, donor) -> np.ndarray:
    """Bright or dark line."""
    return np.clip(image + rng.choice([-1, 1]) * rng.uniform(40, 120), 0, 255)


Paint = Callable[[np.ndarray, np.random.Generator, np.ndarray], np.ndarray]
KINDS: dict[str, Paint] = {
    "texture": _texture,
    "scratch": _scratch,
    "stain": _stain,
    "missing": _missing,
    "swapped": _swapped,
}


def _blob_shape(image: np.ndarray, rng: np.random.Generator, share: float | None) -> np.ndarray:
    """Opacity `(H, W)` in [0, 1] of an irregular blob of a share of the image, with an edge of about a pixel."""
    height, width = image.shape[:2]
    centre = _centre(image, rng)
    drawn = np.exp(rng.uniform(np.log(0.002), np.log(0.04)))
    share = drawn if share is None else share
    radius = np.sqrt(share * height * width / np.pi)
    y, x = np.ogrid[:height, :width]
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    distance = np.hypot((y - centre[0]) * stretch, (x - centre[1]) / stretch) / radius
    ripple = gaussian_filter(rng.normal(size=(height, width)), sigma=max(radius / 2, 1))
    distance += 0.35 * ripple / ripple.std()
    blob = distance <= np.quantile(distance, share)
    opacity = gaussian_filter(blob.astype(np.float64), sigma=0.7)
    return np.where(opacity > 0.02, opacity, 0)


def _scratch_shape(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Opacity `(H, W)` in [0, 1] of a curved line, 1 to 4 pixels wide on 256."""
    height, width = image.shape[:2]
    side = min(height, width)
    start = _centre(image, rng)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.35) * side
    end = start + length * np.array([np.sin(angle), np.cos(angle)])
    middle = (start + end) / 2 + rng.normal(0, 0.15 * length, size=2)
    points = np.round(np.stack([start, middle, end])).astype(int).clip(0, [height - 1, width - 1])
    line = np.zeros((height, width), dtype=bool)
    line[bezier_curve(*points[0], *points[1], *points[2], weight=1, shape=line.shape)] = True
    thickening = int(rng.integers(0, 1 + max(1, round(side / 128))))
    if thickening:  # 0 would mean "until nothing changes" to scipy
        line = binary_dilation(line, iterations=thickening)
    opacity = gaussian_filter(line.astype(np.float64), sigma=0.5)
    return np.where(opacity > 0.05, opacity / max(opacity.max(), 1e-9), 0)


def _centre(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A place on the part: the more structure there is nearby, the likelier; textures are hit anywhere."""
    grey = image.mean(axis=2)
    structure = gaussian_filter(np.hypot(*np.gradient(gaussian_filter(grey, 1))), sigma=min(grey.shape) / 32)
    likelihood = structure.ravel() ** 2 + 1e-6
    return np.array(np.unravel_index(rng.choice(likelihood.size, p=likelihood / likelihood.sum()), grey.shape), dtype=float)


def _is_coloured(image: np.ndarray) -> bool:
    return np.ptp(image, axis=2).mean() > 2


@cache
def _textures() -> list[np.ndarray]:
    return [texture / 255 for texture in (data.brick(), data.grass(), data.gravel())]


@dataclass(frozen=True)
class SyntheticDefect:
    """A good image and what was made of it: `(H, W, 3)` uint8 twice, bool `(H, W)`, and one of [`KINDS`]."""

    normal: np.ndarray
    defective: np.ndarray
    mask: np.ndarray
    kind: str


def defect_set(
    good_images: Sequence[np.ndarray], count: int, seed: int, share: float | None = None
) -> Iterator[SyntheticDefect]:
    """`count` defects on good images of one size, all kinds and images in turn; the donor is the next image.

    Args:
        share: of the image, as of [`add_defect`]; scratches, which have no area to choose, are left out then.
    """
    kinds = [kind for kind in KINDS if share is None or kind != "scratch"]
    for i in range(count):
        kind = kinds[i % len(kinds)]
        normal, donor = (good_images[(i + k) % len(good_images)] for k in (0, 1))
        defective, mask = add_defect(normal, kind, np.random.default_rng([seed, i]), donor, share)
        yield SyntheticDefect(normal, defective, mask, kind)
