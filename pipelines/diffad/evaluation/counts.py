"""How often every score occurs on normal and on defective images or pixels: all that a threshold sweep needs to know."""

from dataclasses import dataclass

import numpy as np

from ..imaging.regions import connected_regions

PIXEL_QUANTILES = 1000  # of each class


@dataclass(frozen=True)
class ScoreCounts:
    """How often every score occurs in each of N images, in K bins from the highest scores to the lowest.

    Args:
        normal, defective: `(N, K)` counts of normal and of defective images or pixels.
        overlap: `(N, K)`, for pixels: the share of a defective region that lies in the bin, summed over the image's regions.
    """

    normal: np.ndarray
    defective: np.ndarray
    overlap: np.ndarray | None = None


def count_together(normal: np.ndarray, defective: np.ndarray, shares: np.ndarray | None = None) -> ScoreCounts:
    """Counts scores of all images together, `(1, K)`, so that a sweep over them is exact.

    Every distinct score of a defective one has a bin, and all normal ones between two of these share one: no metric changes
    when the threshold moves among them, other than along a straight line.

    Args:
        normal, defective: `(n,)` and `(d,)` scores, finite.
        shares: `(d,)`, of pixels: the share of its region that a defective pixel is, as by [`region_shares`].
    """
    normal = np.sort(normal)
    distinct, places = np.unique(defective, return_inverse=True)
    distinct = distinct[::-1]
    at_least, above = (len(normal) - np.searchsorted(normal, distinct, side=side) for side in ("left", "right"))
    # In turn: the normal scores between two defective ones, and those equal to a defective one; last those below all.
    counts = np.zeros((3, 2 * len(distinct) + 1))
    counts[0] = np.diff(np.stack([above, at_least], axis=1).ravel(), prepend=0, append=len(normal))
    counts[1, 1::2] = np.bincount(places)[::-1]
    if shares is not None:
        counts[2, 1::2] = np.bincount(places, weights=shares)[::-1]
    counts = counts[:, None, (counts[0] > 0) | (counts[1] > 0)]
    return ScoreCounts(counts[0], counts[1], None if shares is None else counts[2])


def count_images(scores: np.ndarray, is_defective: np.ndarray) -> ScoreCounts:
    """Counts scores `(N,)` of images with their truth `(N,)`, each image apart: one bin for every distinct score."""
    distinct, places = np.unique(-np.asarray(scores), return_inverse=True)
    counts = np.zeros((len(places), len(distinct)), dtype=np.float32)
    counts[np.arange(len(places)), places] = 1
    is_defective = np.asarray(is_defective, dtype=bool)[:, None]
    return ScoreCounts(normal=counts * ~is_defective, defective=counts * is_defective)


def count_pixels(maps: np.ndarray, masks: np.ndarray) -> ScoreCounts:
    """Counts the pixels of anomaly maps `(N, H, W)` with their truth `(N, H, W)`, each image apart.

    Scores fall into bins between quantiles of normal and of defective pixels, which moves a metric by less than 0.001.
    """
    # Because edges are scores that occur, average precision is exact with fewer defective pixels than quantiles.
    edges = np.unique(np.concatenate([_quantiles(maps[~masks]), _quantiles(maps[masks])]))
    bins = len(edges) + 1
    normal, defective, overlap = (np.zeros((len(maps), bins), dtype=np.float32) for _ in range(3))
    for i, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        places = len(edges) - np.searchsorted(edges, anomaly_map, side="right")
        normal[i] = np.bincount(places[~mask], minlength=bins)
        if mask.any():
            defective[i] = np.bincount(places[mask], minlength=bins)
            overlap[i] = np.bincount(places[mask], weights=region_shares(mask), minlength=bins)
    return ScoreCounts(normal, defective, overlap)


def region_shares(mask: np.ndarray) -> np.ndarray:
    """One divided by its region's size for every pixel of a mask `(H, W)`, in their order; regions are 8-connected."""
    regions, _ = connected_regions(mask)
    of_pixels = regions[mask]
    return 1 / np.bincount(of_pixels)[of_pixels]


def _quantiles(scores: np.ndarray) -> np.ndarray:
    """Scores that occur, the lowest and the highest among them; sorting is faster than selecting as many."""
    ranks = np.linspace(0, 1, PIXEL_QUANTILES) * (len(scores) - 1)
    return np.sort(scores)[ranks.astype(int)]
