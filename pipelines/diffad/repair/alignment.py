"""Where in another image a place looks like what surrounds a region: translation, and rotation and mirror where parts turn."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.optimize import least_squares

OWN = -1  # source of a placement: the image itself, elsewhere
SEARCH_SIDE = 64  # pixels of the shorter side at which all placements are compared
OVERHANG = 8  # of these pixels by which a placement may reach beyond its source, which is mirrored there
ANGLES = tuple(range(0, 360, 10))  # degrees
GAINS = (0.7, 1.4)  # by which contrast is matched, at most
LEAST_WEIGHT = 0.02  # of surroundings, relative to the nearest; what weighs less is left out
REFINED_PIXELS = 2000
TURNED_SHARE = 0.55  # screws and grid have 0.40 and 0.32, solar cells, nuts and tiles 0.78 to 0.85


class Placement(NamedTuple):
    """Which place of a source lies on an image: the source turned about its middle, then moved.

    Args:
        mismatch: mean squared difference of the surroundings in [-1, 1], each with its contrast and brightness matched.
        source: its index, or [`OWN`].
        mirrored: whether the source is mirrored left to right.
        angle: radians, counter-clockwise as displayed.
        down, right: pixels of the source's place relative to the image's.
        log_scale: logarithm of the magnification of steps through the source.
    """

    mismatch: float
    source: int
    mirrored: bool
    angle: float
    down: float
    right: float
    log_scale: float = 0.0


def surroundings(region: np.ndarray, decay_length: float) -> np.ndarray:
    """Weights `(H, W)` of sum 1 of the pixels around a region: they fall by e over `decay_length` pixels; 0 inside.

    All are 0 where the region is the whole image.
    """
    weight = np.where(region, 0, np.exp(-distance_transform_edt(~region) / decay_length))
    weight[weight < LEAST_WEIGHT] = 0
    return weight / weight.sum() if weight.any() else weight


def best_placements(
    image: np.ndarray, region: np.ndarray, sources: np.ndarray, parts_turn: bool = False, count: int = 3
) -> list[Placement]:
    """The placements of other images, or of the image itself, whose surroundings of the region are most like the image's.

    All translations by whole pixels are compared at a small size, then the best of each source are refined: subpixel shift,
    rotation and scale by least squares.

    Args:
        image: `(3, H, W)` in [-1, 1].
        region: bool `(H, W)`, where the image is not to be trusted.
        sources: `(N, 3, H, W)` images of good parts.
        parts_turn: also compare sources that are mirrored and turned in steps of 10 degrees.
        count: how many, at most.

    Returns:
        From the best on; none where the region has no surroundings.
    """
    decay_length = max(8 * min(region.shape) / 256, 0.35 * math.sqrt(region.sum()))
    weight = surroundings(region, decay_length)
    if not weight.any():
        return []
    found = _search(image, region, weight, sources, parts_turn)
    of_source = {one.source: one for one in reversed(found)}  # the best of each
    rough = sorted(of_source.values())[: 2 * count]
    own = [image if one.source == OWN else sources[one.source] for one in rough]
    return sorted(_refine(image, weight, source, one) for source, one in zip(own, rough))[:count]


def turning_helps(images: np.ndarray, sources: np.ndarray) -> bool:
    """Whether parts lie in any direction: turned and mirrored sources agree with images far better than upright ones.

    Compared is what surrounds a disc in the middle of each image: they do where its mismatch falls to less than
    [`TURNED_SHARE`], in the geometric mean.

    Args:
        images: `(N, 3, H, W)` in [-1, 1].
        sources: `(M, 3, H, W)`, none of them among the images.
    """
    height, width = images.shape[-2:]
    rows, columns = np.ogrid[:height, :width]
    disc = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) < min(height, width) / 16
    weight = surroundings(disc, decay_length=min(height, width) / 8)
    shares = []
    for image in images:
        upright, turned = (
            min(one.mismatch for one in _search(image, disc, weight, sources, parts_turn) if one.source != OWN)
            for parts_turn in (False, True)
        )
        shares.append(max(turned, 1e-9) / max(upright, 1e-9))  # images may be equal
    return bool(np.exp(np.log(shares).mean()) < TURNED_SHARE)


def placed(source: np.ndarray, placement: Placement, order: int = 3) -> np.ndarray:
    """The source `(3, H, W)` as it lies on the image, mirrored beyond its borders.

    Args:
        order: of the interpolating spline.
    """
    rows, columns = np.indices(source.shape[-2:], dtype=float)
    return _sample(source, placement, rows, columns, order)


def matched_levels(values: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Gain g and means a, b `(C, 1)` by which `g (values - a) + b` is nearest to the targets, weighted; g within [`GAINS`].

    Args:
        values, targets: `(C, P)`.
        weight: `(P,)` of sum 1.
    """
    a, b = (values @ weight)[:, None], (targets @ weight)[:, None]
    variance = (np.square(values - a) @ weight).sum()
    covariance = ((values - a) * (targets - b) @ weight).sum()
    return float(np.clip(covariance / max(variance, 1e-12), *GAINS)), a, b


def _search(
    image: np.ndarray, region: np.ndarray, weight: np.ndarray, sources: np.ndarray, parts_turn: bool
) -> list[Placement]:
    """The best translation of every source in every direction, compared at a small size in grey; from the best on."""
    factor = max(1, min(region.shape) // SEARCH_SIDE)
    to_small = lambda array: F.avg_pool2d(torch.from_numpy(np.ascontiguousarray(array)).float(), factor)  # noqa: E731
    target = to_small(image.mean(axis=0)[None, None])[0, 0]  # (h, w)
    inside = F.max_pool2d(torch.from_numpy(region)[None, None].float(), factor)[0, 0]  # (h, w)
    around = to_small(weight[None, None])[0, 0] * (1 - inside)
    if not around.any():
        return []
    around /= around.sum()
    small = to_small(sources.mean(axis=1)[:, None])[:, 0]  # (N, h, w)
    placements = []
    for mirrored in (False, True) if parts_turn else (False,):
        for degrees in ANGLES if parts_turn else (0,):
            turned = _turned(small.flip(-1) if mirrored else small, math.radians(degrees))
            costs, downs, rights = _best_shifts(target, around, turned)
            of_angle = zip(costs, range(len(small)), downs * factor, rights * factor)
            placements += [
                Placement(float(cost), source, mirrored, math.radians(degrees), float(down), float(right))
                for cost, source, down, right in of_angle
            ]
    cost, down, right = (array[0] for array in _best_shifts(target, around, target[None], inside))
    if np.isfinite(cost):
        placements.append(Placement(float(cost), OWN, False, 0.0, float(down * factor), float(right * factor)))
    return sorted(placements)


def _turned(images: torch.Tensor, angle: float) -> torch.Tensor:
    """Images `(N, h, w)` turned about their middle, mirrored beyond their borders."""
    if angle == 0:
        return images
    cos, sin, aspect = math.cos(angle), math.sin(angle), images.shape[1] / images.shape[2]
    turn = torch.tensor([[cos, -sin * aspect, 0], [sin / aspect, cos, 0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(turn, [len(images), 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, padding_mode="reflection", align_corners=False)[:, 0]


def _best_shifts(
    target: torch.Tensor, weight: torch.Tensor, sources: torch.Tensor, excluded: torch.Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each source `(N, h, w)` the least weighted squared difference to the target `(h, w)` over all shifts, and the shift.

    The squared difference is left after the best gain and offset, plus a little of what the offset takes away.

    Args:
        excluded: `(h, w)`, above 0 where neither what is compared nor the excluded region itself may come from.

    Returns:
        `(N,)` each: mismatches (infinite where no shift is possible), pixels down and to the right.
    """
    height, width = target.shape
    rows, columns = torch.nonzero(weight > 0, as_tuple=True)
    box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
    margin = min(OVERHANG, height - 1, width - 1)
    frames = F.pad(sources[:, None], (margin,) * 4, mode="reflect")[:, 0]  # (N, h + 2 margin, w + 2 margin)
    size = tuple(frames.shape[1:])
    w, t = weight[box], target[box]
    places = size[0] - w.shape[0] + 1, size[1] - w.shape[1] + 1

    def correlated(spectrum: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(spectrum * torch.fft.rfft2(template, size).conj(), size)[..., : places[0], : places[1]]

    spectrum, mean = torch.fft.rfft2(frames), (w * t).sum()
    first, product = correlated(spectrum, w), correlated(spectrum, w * (t - mean))
    variance = (correlated(torch.fft.rfft2(frames.square()), w) - first.square()).clamp_min(1e-5)
    gain = (product / variance).clamp(*GAINS)
    cost = (w * (t - mean).square()).sum() - 2 * gain * product + gain.square() * variance
    cost = cost + 0.05 * (first - mean).square()  # (N, *places)
    if excluded is not None:
        taken = F.pad(excluded, (margin,) * 4)
        used = torch.maximum(excluded, (weight > 0).to(weight))[box]
        overlap = correlated(torch.fft.rfft2(taken), used)
        cost = torch.where(overlap > 0.5, torch.inf, cost)
    least, index = cost.flatten(1).min(dim=1)
    down = torch.div(index, places[1], rounding_mode="floor") - margin - box[0].start
    return least.numpy(), down.numpy(), (index % places[1] - margin - box[1].start).numpy()


def _refine(image: np.ndarray, weight: np.ndarray, source: np.ndarray, rough: Placement) -> Placement:
    """The placement moved, turned and scaled a little to where the surroundings agree best, in grey."""
    target, grey = image.mean(axis=0), source.mean(axis=0)[None]
    rows, columns = np.nonzero(weight)
    step = -(-len(rows) // REFINED_PIXELS)
    rows, columns = rows[::step], columns[::step]
    share = weight[rows, columns] / weight[rows, columns].sum()
    targets = target[rows, columns][None]

    def moved(parameters: np.ndarray) -> Placement:
        turn, down, right, scale = parameters
        return rough._replace(angle=rough.angle + turn / 100, down=down, right=right, log_scale=scale / 100)

    def differences(parameters: np.ndarray) -> np.ndarray:
        values = _sample(grey, moved(parameters), rows.astype(float), columns.astype(float), order=1)
        gain, a, b = matched_levels(values, targets, share)
        return ((gain * (values - a) - (targets - b)) * np.sqrt(share)).ravel()

    # A hundredth of a radian and of a magnification move the border of an image about as far as a pixel does.
    start = np.array([0.0, rough.down, rough.right, 0.0])
    limits = np.array([10.0, 8.0, 8.0, 5.0])
    fitted = least_squares(differences, start, bounds=(start - limits, start + limits), diff_step=1e-2, max_nfev=12)
    best = min((start, fitted.x), key=lambda parameters: np.square(differences(parameters)).sum())
    return moved(best)._replace(mismatch=float(np.square(differences(best)).sum()))


def _sample(source: np.ndarray, placement: Placement, rows: np.ndarray, columns: np.ndarray, order: int) -> np.ndarray:
    """Values `(C, *)` of a source `(C, H, W)` that lie on an image's pixels, which rows and columns `(*)` name."""
    height, width = source.shape[-2:]
    middle = (height - 1) / 2, (width - 1) / 2
    y, x = rows + placement.down - middle[0], columns + placement.right - middle[1]
    cos, sin = (math.exp(placement.log_scale) * f(placement.angle) for f in (math.cos, math.sin))
    x, y = cos * x - sin * y + middle[1], sin * x + cos * y + middle[0]
    if placement.mirrored:
        x = width - 1 - x
    return np.stack([map_coordinates(channel, [y, x], order=order, mode="mirror") for channel in source])


def sources_of(image: np.ndarray, sources: np.ndarray, placements: Sequence[Placement]) -> list[np.ndarray]:
    """The images `(3, H, W)` that placements are of."""
    return [image if one.source == OWN else sources[one.source] for one in placements]
