"""The test of embeddings: pooled features of blocks of parts against those of reference parts, by MMD and permutations.

The maximum mean discrepancy (Gretton et al. 2012, A kernel two-sample test) of a block and the reference, under a Gaussian
kernel, is compared with those of random divisions of the same images into two sets of these sizes. If block and reference are
exchangeable, the p-value (1 + divisions at least as high) / (1 + divisions) of a block is valid, whatever the features are.
Blocks share their reference, so that their p-values depend on each other; therefore block b = 0, 1, ... has a part a_b of the
level a, with sum a_b <= a, and the union bound holds under any dependence: P(ever p_b <= a_b) <= a.
"""

import math

import numpy as np

from .urn import unspent

BLOCK = 200  # parts
FIRST_SHARE = 0.5  # of the level, for the first block: a change since calibration is seen there
BLOCKS_SCALE = 100  # `unspent` counts parts; a block stands for so many
MOST_REFERENCES = 500
DIVISIONS_PER_LEVEL = 4  # divisions drawn are so many over a_b
AT_ONCE = 2000  # divisions


def block_level(block: int, level: float) -> float:
    """a_b, the part of the level that a block has; all blocks together have at most the level.

    Args:
        block: from 0 on.
    """
    if block == 0:
        return FIRST_SHARE * level
    before, after = (unspent(BLOCKS_SCALE * blocks) for blocks in (block - 1, block))
    return float((1 - FIRST_SHARE) * level * (before - after))


def kernel_matrix(features: np.ndarray) -> np.ndarray:
    """`(N, N)` Gaussian kernel of features `(N, D)`, each standardised; its width is the median distance.

    It treats all N alike, as the permutation test demands.
    """
    standard = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-12)
    squared = (standard**2).sum(axis=1)
    distances = np.maximum(squared[:, None] + squared - 2 * standard @ standard.T, 0)
    off_diagonal = distances[np.triu_indices(len(distances), 1)]
    return np.exp(-distances / max(float(np.median(off_diagonal)), 1e-12))


def discrepancy(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared MMD `(M,)` of divisions given by weights `(M, N)`: 1/r on one set of r, -1/m on the other of m."""
    return np.einsum("mi,mi->m", weights @ kernel, weights)


def permutation_p_value(reference: np.ndarray, block: np.ndarray, level: float, seed: tuple[int, ...]) -> float:
    """P-value of a block `(m, D)` against reference features `(r, D)`, as exact as a decision at `level` needs.

    Drawing ends as soon as the p-value of all divisions is sure to exceed the level; what is returned then exceeds it, too.

    Args:
        seed: of the divisions.
    """
    kernel = kernel_matrix(np.concatenate([reference, block]))
    weights = np.concatenate([np.full(len(reference), 1 / len(reference)), np.full(len(block), -1 / len(block))])
    observed = discrepancy(kernel, weights[None])[0] * (1 - 1e-12)  # a division and its like differ by rounding
    divisions = math.ceil(DIVISIONS_PER_LEVEL / level)
    rng = np.random.default_rng(seed)
    drawn = higher = 0
    while drawn < divisions and (1 + higher) / (1 + divisions) <= level:
        count = min(AT_ONCE, divisions - drawn)
        permuted = rng.permuted(np.tile(weights, (count, 1)), axis=1)
        higher += int((discrepancy(kernel, permuted) >= observed).sum())
        drawn += count
    return (1 + higher) / (1 + drawn)


class EmbeddingTest:
    """Compares blocks of parts with reference parts.

    Args:
        reference: `(r, D)` features of good parts that are exchangeable with production, at least 20; of more than 500 a seeded
            draw is used.
        level: a, the probability that any block ever seems to differ while nothing has changed.
        seed: of all draws.

    Raises:
        ValueError: if there are too few references, or one is not finite.
    """

    def __init__(self, reference: np.ndarray, level: float, seed: int = 0):
        reference = np.asarray(reference, dtype=float)
        if reference.ndim != 2 or len(reference) < 20:
            raise ValueError(f"reference features of shape {reference.shape}: give one row of each of 20 good parts or more")
        if not np.isfinite(reference).all():
            raise ValueError("reference features must be finite")
        if len(reference) > MOST_REFERENCES:
            chosen = np.random.default_rng((seed, 2)).choice(len(reference), MOST_REFERENCES, replace=False)
            reference = reference[np.sort(chosen)]
        self.reference, self.level, self.seed = reference, level, seed
        self.waiting: list[list[float]] = []  # features of the block that is not full yet
        self.blocks: list[tuple[float, float]] = []  # p-value and a_b of each block

    def update(self, features: np.ndarray) -> bool:
        """Takes the features `(D,)` of one part; whether they completed a block that differs.

        Raises:
            ValueError: if they have another length than those of the reference, or are not finite.
        """
        features = np.asarray(features, dtype=float)
        if features.shape != self.reference.shape[1:] or not np.isfinite(features).all():
            raise ValueError(
                f"features: {self.reference.shape[1]} finite numbers are needed, got an array of shape {features.shape}"
            )
        self.waiting.append(features.tolist())
        if len(self.waiting) < BLOCK:
            return False
        number, block = len(self.blocks), np.array(self.waiting)
        allowed = block_level(number, self.level)
        p_value = permutation_p_value(self.reference, block, allowed, (self.seed, 3, number))
        self.blocks.append((p_value, allowed))
        self.waiting = []
        return p_value <= allowed

    def state(self) -> dict:
        """Everything that parts have changed, as values JSON can hold."""
        return {"waiting": self.waiting, "blocks": self.blocks}

    def restore(self, state: dict) -> None:
        """Takes over what [`EmbeddingTest.state`] gave."""
        self.waiting = [list(features) for features in state["waiting"]]
        self.blocks = [(p_value, allowed) for p_value, allowed in state["blocks"]]
