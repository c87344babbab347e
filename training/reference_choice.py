"""Which images of good parts a model keeps for repair: few that cover what good parts look like."""

import numpy as np
import torch
from diffad import ReferenceImages
from diffad.models.reference_images import MOST_BYTES
from diffad.repair.alignment import turning_helps

COMPARED = 12  # images by which it is found out whether parts lie in any direction
COMPARED_WITH = 12
TURNED = 3  # times fewer images are kept where parts turn: each serves all directions, and takes as many times longer


def choose_references(
    images: np.ndarray, indices: np.ndarray, pooled_features: np.ndarray, categories: np.ndarray, count: int
) -> ReferenceImages | None:
    """The images, or tiles of them, that cover each category best, as many of each.

    Args:
        images: `(M, 3, H, W)` uint8, perhaps on disk; few of them are read.
        indices: `(N,)`, those of good parts that may be kept.
        pooled_features: `(N, D)`, spatial means of their features.
        categories: `(N,)` indices.
        count: how many in all, at most; as many as 10 MB hold, at most.

    Returns:
        None where the count leaves no image for a category.
    """
    kinds = np.unique(categories)
    of_each = min(count, MOST_BYTES // images[0].size) // len(kinds)
    if of_each == 0:
        return None
    chosen = [np.flatnonzero(categories == kind) for kind in kinds]
    chosen = [members[covering(pooled_features[members], of_each)] for members in chosen]
    others = np.setdiff1d(np.flatnonzero(categories == kinds[0]), chosen[0])
    others = others[:: max(1, len(others) // COMPARED)][:COMPARED]
    to_range = lambda members: images[indices[members]].astype(np.float64) / 127.5 - 1  # noqa: E731
    parts_turn = len(others) > 0 and turning_helps(to_range(others), to_range(chosen[0][:COMPARED_WITH]))
    kept = np.concatenate([members[: max(1, len(members) // TURNED)] if parts_turn else members for members in chosen])
    chosen_images = torch.from_numpy(images[indices[kept]])  # (n, 3, H, W)
    if torch.equal(chosen_images, chosen_images[:, :1].expand_as(chosen_images)):
        chosen_images = chosen_images[:, :1]  # grey
    of_categories = tuple(int(c) for c in categories[kept])
    references = ReferenceImages(images.shape[-2:], of_categories, parts_turn, channels=chosen_images.shape[1])
    references.images.copy_(chosen_images)
    return references


def covering(points: np.ndarray, count: int) -> list[int]:
    """Greedy k-center: the point nearest to the mean, then again and again the one furthest from all chosen (Gonzalez 1985).

    No point is then further from a chosen one than twice the least distance that any choice of as many could reach.

    Args:
        points: `(N, D)`.

    Returns:
        Indices of `min(count, N)` points.
    """
    chosen = [int(np.square(points - points.mean(axis=0)).sum(axis=1).argmin())]
    distance = np.square(points - points[chosen[0]]).sum(axis=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(axis=1))
    return chosen
