"""Which image stands for a group of them where single images are compared, as the monitor does with parts of production."""

from collections.abc import Sequence

import numpy as np


def drawn_images(groups: Sequence[np.ndarray], seed: int) -> np.ndarray | None:
    """`(n,)` index of one image of each group, drawn whatever its score is; None where every group is one image.

    A threshold counts groups by their highest scores. Ranked among these, single images of unchanged production would seem to
    have fallen. One image drawn of each group has the law of a single image of a new part, and groups are independent, so that
    the n drawn scores and those of new parts, each shown once, are exchangeable. Their k-th lowest is not above the threshold,
    the k-th lowest of the highest scores.

    Args:
        groups: indices of the images of each.
    """
    if all(len(group) == 1 for group in groups):
        return None
    rng = np.random.default_rng((seed, 4))
    return np.array([group[rng.integers(len(group))] for group in groups])
