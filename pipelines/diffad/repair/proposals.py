"""What a region could have looked like: the same place of good images, aligned and blended in."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import binary_dilation, binary_fill_holes, binary_propagation, gaussian_filter

from .alignment import best_placements, matched_levels, placed, sources_of, surroundings
from .fill import fill_from_surroundings
from .windows import Window


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
        `(k, 3, H, W)` with k <= count and the contrast of what surrounds the region, the best agreement first.
    """
    pixels, inside = image.cpu().double().numpy(), region[0].cpu().numpy() > 0
    sources = references.cpu().double().numpy()
    placements = best_placements(pixels, inside, sources, parts_turn, count)
    weight = surroundings(inside, decay_length=8.0)
    around = weight > 0
    contents = []
    for placement, source in zip(placements, sources_of(pixels, sources, placements), strict=True):
        content = placed(source, placement)
        gain, a, b = matched_levels(content[:, around], pixels[:, around], weight[around])
        contents.append(gain * (content - a[..., None]) + b[..., None])
    return torch.from_numpy(np.stack(contents)).to(image) if contents else image[None][:0]


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


def grow_region(image: torch.Tensor, region: torch.Tensor, contents: torch.Tensor, least: float, factor: float) -> torch.Tensor:
    """The region with what adjoins it and differs from every content: defect that the anomaly map does not show.

    Where parts vary, contents differ from good places, too. So what counts is measured by how much they do so all around the
    region, where most pixels are good.

    Args:
        image, region, contents: as of [`blend_in`].
        least: mean absolute difference over channels, in the range [-1, 1], below which nothing counts.
        factor: multiple of the median difference around the region below which nothing counts.

    Returns:
        `(1, H, W)`, 1 inside, without holes.
    """
    inside = region[0].cpu().numpy() > 0
    around = surroundings(inside, decay_length=0.35 * np.sqrt(inside.sum())) > 0
    if not len(contents) or not around.any():
        return region
    difference = (image - contents).abs().mean(dim=1).cpu().numpy()  # (k, H, W)
    smallest = np.min([gaussian_filter(one, sigma=1.0) for one in difference], axis=0)  # (H, W)
    differs = smallest > max(least, factor * np.median(smallest[around]))
    grown = binary_propagation(inside, mask=inside | differs)
    # What is replaced ends a little beyond what differs, where the defect fades.
    added = binary_dilation(grown & ~inside, iterations=2)
    return torch.from_numpy(binary_fill_holes(inside | added)).to(region)[None]
