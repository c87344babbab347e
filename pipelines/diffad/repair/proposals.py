"""What a region could have looked like: the same place of good images, aligned and blended in."""

import numpy as np
import torch

from .alignment import best_placements, matched_levels, placed, sources_of, surroundings
from .fill import fill_from_surroundings


def propose(image: torch.Tensor, region: torch.Tensor, references: torch.Tensor, turns: bool, count: int) -> torch.Tensor:
    """Repairs of one image, each with its region taken from another good image, or from elsewhere in the image itself.

    The content is aligned by what surrounds the region, its contrast matched there, and blended in the domain of gradients
    (Perez et al. 2003): what it lacks at the region's border is continued smoothly across the region.

    Args:
        image: `(3, H, W)` in [-1, 1].
        region: `(1, H, W)`, above 0 where the image is replaced.
        references: `(N, 3, H, W)`, images of good parts.
        turns: whether parts lie in any direction.
        count: how many, at most.

    Returns:
        `(k, 3, H, W)` with k <= count, the best agreement with the surroundings first.
    """
    pixels, inside = image.cpu().double().numpy(), region[0].cpu().numpy() > 0
    sources = references.cpu().double().numpy()
    placements = best_placements(pixels, inside, sources, turns, count)
    weight = surroundings(inside, reach=8.0)
    around = weight > 0
    share = weight[around]
    contents = []
    for placement, source in zip(placements, sources_of(pixels, sources, placements), strict=True):
        content = placed(source, placement)
        gain, a, b = matched_levels(content[:, around], pixels[:, around], share)
        contents.append(gain * (content - a[..., None]) + b[..., None])
    if not contents:
        return image[None][:0]
    content = torch.from_numpy(np.stack(contents)).to(image)  # (k, 3, H, W)
    mask = (region > 0).to(image).expand(len(content), 1, *region.shape[-2:])
    difference = fill_from_surroundings((image - content) * (1 - mask), mask)
    return torch.where(mask > 0, (content + difference).clamp(-1, 1), image)
