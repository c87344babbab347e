"""What a region could have looked like: the same place of good images, aligned and blended in."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import binary_dilation, binary_fill_holes, binary_propagation, gaussian_filter

from .alignment import best_placements, matched_levels, placed, sources_of, surroundings
from .fill import fill_from_surroundings
from .windows import Window

GROWTH_ROUNDS = 2
LEAST_DECAY = 1 / 16  # of the shorter side: surroundings of small marks reach beyond the shade of a defect


class GrowthLimit(NamedTuple):
    """From which difference to all contents a place is taken for defect.

    Args:
        sigma: of the Gaussian mean, in pixels, by which differences are smoothed.
        least: mean absolute difference over channels, in the range [-1, 1], below which nothing counts.
        factor: multiple of the upper quartile of the differences around the region below which nothing counts.
    """

    sigma: float
    least: float
    factor: float


def aligned_contents(
    image: torch.Tensor, region: torch.Tensor, references: torch.Tensor, parts_turn: bool, count: int
) -> torch.Tensor:
    """Good images, and the image itself from elsewhere, moved so that they agree with what surrounds a region of one image.

    Args:
        image: `(3, H, W)` in [-1, 1].
        region: `(1, H, W)`, above 0 where the image is not to be trusted.
        references: `(N, 3, H, W)`, images of good parts.
        parts_turn: whether parts lie in any direction.
        count: how many, at most.

    Returns:
        `(k, 3, H, W)` with k <= count and contrast and brightness of their own, the best agreement first.
    """
    pixels, inside = image.cpu().double().numpy(), region[0].cpu().numpy() > 0
    sources = references.cpu().double().numpy()
    placements = best_placements(pixels, inside, sources, parts_turn, count)
    contents = [placed(*one) for one in zip(sources_of(pixels, sources, placements), placements, strict=True)]
    return torch.from_numpy(np.stack(contents)).to(image) if contents else image[None][:0]


def with_surrounding_levels(image: torch.Tensor, region: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
    """The contents `(k, 3, H, W)` with contrast and brightness of what surrounds the region in the image.

    Args:
        image, region: as of [`aligned_contents`].
    """
    weight = surroundings(region[0].cpu().numpy() > 0, decay_length=8.0)
    around = weight > 0
    targets, matched = image.cpu().double().numpy()[:, around], []
    for content in contents.cpu().double().numpy():
        gain, a, b = matched_levels(content[:, around], targets, weight[around])
        matched.append(gain * (content - a[..., None]) + b[..., None])
    return torch.from_numpy(np.stack(matched)).to(image) if matched else contents


def blend_in(image: torch.Tensor, region: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
    """Repairs `(k, 3, H, W)` of one image, each with its region taken from one of the contents.

    Blended is in the domain of gradients (Perez et al. 2003): what a content lacks at the region's border is continued smoothly
    across the region.

    Args:
        image: `(3, H, W)` in [-1, 1], or `(k, 3, H, W)`, one for each content.
        region: `(1, H, W)`, above 0 where the image is replaced.
        contents: `(k, 3, H, W)`, aligned.
    """
    mask = (region > 0).to(image).expand(len(contents), 1, *region.shape[-2:])
    difference = fill_from_surroundings((image - contents) * (1 - mask), mask)
    return torch.where(mask > 0, (contents + difference).clamp(-1, 1), image)


def blend_in_windows(
    image: torch.Tensor, region: torch.Tensor, windows: Sequence[Window], contents: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Repairs `(k, 3, H, W)` of one image, the n-th with every window's n-th content, or its last where it has fewer.

    Windows are repaired one after the other, so that each continues what the earlier ones have made of their part, and nothing
    is continued from what later ones repair.

    Args:
        image, region: as of [`blend_in`], of any size.
        windows: of the image, each with the part of the region that it repairs.
        contents: of each window `(n, 3, h, w)`, at least one.
    """
    count = max(map(len, contents))
    images = image.repeat(count, 1, 1, 1)  # (k, 3, H, W)
    remaining = region.clone()
    for window, found in zip(windows, contents, strict=True):
        _, _, rows, columns = window.index
        chosen = found[[min(number, len(found) - 1) for number in range(count)]]  # (k, 3, h, w)
        before, to_repair = images[..., rows, columns], torch.from_numpy(window.to_repair).to(images.device)
        blended = blend_in(before, remaining[:, rows, columns], chosen)
        images[..., rows, columns] = torch.where(to_repair, blended, before)
        remaining[:, rows, columns] *= ~to_repair
    return images


def grow_region(
    image: torch.Tensor, region: torch.Tensor, contents: torch.Tensor, limits: Sequence[GrowthLimit]
) -> torch.Tensor:
    """The region with what adjoins it and differs from every content: defect that the anomaly map does not show.

    Where parts vary, contents differ from good places, too. So what counts is measured by how much they do so all around the
    region, where most pixels are good, and the image must be further from each of them than the two that agree best are from
    each other. Differences keep their sign when they are smoothed: so those of a structure that lies a little beside its place
    cancel, and a faint shade remains.

    Args:
        image, region, contents: as of [`blend_in`].
        limits: of which each finds what differs enough at its scale.

    Returns:
        `(1, H, W)`, 1 inside, without holes.
    """
    inside = region[0].cpu().numpy() > 0
    decay_length = max(LEAST_DECAY * min(inside.shape), 0.35 * np.sqrt(inside.sum()))
    around = surroundings(inside, decay_length) > 0
    if not len(contents) or not around.any():
        return region
    difference = (image - contents).cpu().double().numpy()  # (k, 3, H, W)
    # What is matched right beside the region may have its shade; farther away most pixels are good.
    difference -= np.median(difference[..., around], axis=-1)[..., None, None]
    differs = np.zeros_like(inside)
    for limit in limits:
        smooth = _smoothed_outside(difference, inside, limit.sigma)  # (k, 3, H, W)
        smallest = np.abs(smooth).mean(axis=1).min(axis=0)  # (H, W)
        of_pairs = [np.abs(one - other).mean(axis=0) for one, other in combinations(smooth, 2)]
        agreement = np.min(of_pairs, axis=0) if of_pairs else 0  # (H, W), difference of the two contents that agree best
        level = max(limit.least, limit.factor * np.quantile(smallest[around], 0.75))
        differs |= (smallest > level) & (smallest > agreement)
    grown = binary_propagation(inside, mask=inside | (differs & around))
    # What is replaced ends a little beyond what differs, where the defect fades.
    added = binary_dilation(grown & ~inside, iterations=2)
    return torch.from_numpy(binary_fill_holes(inside | added)).to(region)[None]


def grow_with_contents(
    image: torch.Tensor, region: torch.Tensor, contents: torch.Tensor, limits: Sequence[GrowthLimit]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The region grown, and the contents with the levels of what surrounds it then.

    Contents whose levels were matched to the shade of a defect don't show all of it, so that growing is repeated.

    Args:
        image, region, contents, limits: as of [`grow_region`].
    """
    for _ in range(GROWTH_ROUNDS):
        matched = with_surrounding_levels(image, region, contents)
        grown = grow_region(image, region, matched, limits)
        if torch.equal(grown, region):
            return region, matched
        region = grown
    return region, with_surrounding_levels(image, region, contents)


def _smoothed_outside(values: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian means of values `(k, C, H, W)` over the pixels that are not inside `(H, W)`; 0 far from all of them."""
    outside = (~inside).astype(float)
    weight = gaussian_filter(outside, sigma)
    return gaussian_filter(values * outside, sigma, axes=(-2, -1)) / np.maximum(weight, 1e-6)
