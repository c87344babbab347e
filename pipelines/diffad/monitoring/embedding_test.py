"""The test of embeddings: pooled features of blocks of parts against those of reference parts, by MMD and permutations.

The maximum mean discrepancy (Gretton et al. 2012, A kernel two-sample test) of a block and the reference, under a Gaussian
kernel, is compared with those of random divisions of the same images into two sets of these sizes. If block and reference are
exchangeable, the p-value (1 + divisions at least as high) / (1 + divisions) of a block is valid, whatever the features are.
Blocks share their reference, so that their p-values depend on each other; therefore block b = 0, 1, ... has a part a_b of the
level a, with sum a_b <= a, and the union bound holds under any dependence: P(ever p_b <= a_b) <= a. The same bound allows looks
at a block before it is full, which share its part.

Blocks 0 to 3, 4, 8, 16, ... alone are compared, so that a_b falls with the logarithm of the number of parts only: an alarm
takes 1 / a_b divisions, which must not last hours after a million parts. In return a late change waits for the next such
block, at the latest until about as many parts have come again.
"""

import base64
import math
from dataclasses import dataclass

import numpy as np

from .saved_values import check_pairs, number, numbers, whole
from .urn import unspent

LOOKS = (25, 50, 100, 200)  # parts of a block after which it is compared; the last is the whole block
FIRST_SHARE = 0.5  # of the level, for the first block: a change since calibration is seen there
BLOCKS_SCALE = 100  # `unspent` counts parts; a block stands for so many
LEAST_REFERENCES = 20
MOST_REFERENCES = 500
FIRST_BLOCKS = 4  # each of which is compared; later ones where their number is a power of two
FIRST_DRAWN, AT_ONCE = 100, 2000  # divisions, most often few are enough
REGULARIZATION = 0.1  # of correlations
MOST_BLOCKS_WAITING = 2
KEPT_LOOKS = 100  # in the state, for people to read
LATER_VALUES = (("block", "looked"), ("to_skip", "level"))  # of states; each pair came with one release


def block_level(block: int, level: float) -> float:
    """a_b, the part of the level that a block has; all blocks together have at most the level.

    Args:
        block: from 0 on.
    """
    if block == 0:
        return FIRST_SHARE * level
    before, after = (unspent(BLOCKS_SCALE * blocks) for blocks in (block - 1, block))
    return float((1 - FIRST_SHARE) * level * (before - after))


def level_after(block: int, level: float) -> float:
    """What [`block_level`] leaves for all blocks after a block."""
    return float((1 - FIRST_SHARE) * level * unspent(BLOCKS_SCALE * block))


def is_compared(block: int) -> bool:
    """Whether a block, from 0 on, is compared; the others are dropped."""
    return block < FIRST_BLOCKS or block & (block - 1) == 0


def compared_before(block: int) -> int:
    """How many blocks before this one are compared, if it is compared itself."""
    return block if block < FIRST_BLOCKS else block.bit_length() + 1


def kernel_matrix(features: np.ndarray) -> np.ndarray:
    """`(N, N)` Gaussian kernel of features `(N, D)`; its width is the median distance.

    Distances are Mahalanobis distances under the correlations of all N plus 0.1 I, so that a change counts beside what varies
    anyway. It treats all N alike, as the permutation test demands.
    """
    standard = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-12)
    variances, directions = np.linalg.eigh(standard.T @ standard / len(standard))
    whitened = standard @ directions / np.sqrt(np.maximum(variances, 0) + REGULARIZATION)
    squared = (whitened**2).sum(axis=1)
    distances = np.maximum(squared[:, None] + squared - 2 * whitened @ whitened.T, 0)
    off_diagonal = distances[np.triu_indices(len(distances), 1)]
    return np.exp(-distances / max(float(np.median(off_diagonal)), 1e-12))


def discrepancy(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared MMD `(M,)` of divisions given by weights `(M, N)`: 1/r on one set of r, -1/m on the other of m."""
    return np.einsum("mi,mi->m", weights @ kernel, weights)


def permutation_p_value(reference: np.ndarray, block: np.ndarray, level: float, seed: tuple[int, ...]) -> float:
    """P-value of a block `(m, D)` against reference features `(r, D)`, as exact as a decision at `level` needs.

    At most N = 1 / level divisions are drawn, rounded up: about the fewest whose least p-value, 1 / (1 + N), is an alarm. The
    p-value of N divisions is valid for every N, as under exchangeability the block's own division has any rank among the
    N + 1. Drawing ends as soon as that p-value is sure to exceed the level, at a small level with the first division as high;
    what is returned then exceeds the level, too, so that the decision is that of all N.

    Args:
        seed: of the divisions.
    """
    kernel = kernel_matrix(np.concatenate([reference, block]))
    weights = np.concatenate([np.full(len(reference), 1 / len(reference)), np.full(len(block), -1 / len(block))])
    observed = discrepancy(kernel, weights[None])[0] * (1 - 1e-12)  # a division and its like differ by rounding
    divisions = math.ceil(1 / level)
    rng = np.random.default_rng(seed)
    drawn = higher = 0
    while drawn < divisions and (1 + higher) / (1 + divisions) <= level:
        count = min(AT_ONCE if drawn else FIRST_DRAWN, divisions - drawn)
        permuted = rng.permuted(np.tile(weights, (count, 1)), axis=1)
        higher += int((discrepancy(kernel, permuted) >= observed).sum())
        drawn += count
    return (1 + higher) / (1 + drawn)


@dataclass(frozen=True)
class EmbeddingLook:
    """One comparison that is due; what it needs is its own, so that any thread can make it.

    Args:
        reference, window: features `(r, D)` and `(m, D)`.
        allowed: p-value up to which it is an alarm.
        seed: of the divisions.
    """

    reference: np.ndarray
    window: np.ndarray
    allowed: float
    seed: tuple[int, ...]

    def p_value(self) -> float:
        """As of [`permutation_p_value`].

        It draws 1 / `allowed` divisions at most, fewer where it is no alarm. At a level of 0.01 these are 800 in block 0,
        22,000 in block 4, and 156,000 in the latest block of a million parts; at a tenth of the level ten times as many.
        A division takes 1 µs for 23 references and a window of 25, 14 µs for 100 and 200, 55 µs for 500 and 200, on one core:
        9 seconds at most after a million parts. The kernel of 1,000 features takes 0.2 to 0.4 seconds besides.
        """
        return permutation_p_value(self.reference, self.window, self.allowed, self.seed)


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
        if reference.ndim != 2 or len(reference) < LEAST_REFERENCES:
            raise ValueError(
                f"reference features of shape {reference.shape}: give one row of each of {LEAST_REFERENCES} good parts or more"
            )
        if not np.isfinite(reference).all():
            raise ValueError("reference features must be finite")
        if len(reference) > MOST_REFERENCES:
            chosen = np.random.default_rng((seed, 2)).choice(len(reference), MOST_REFERENCES, replace=False)
            reference = reference[np.sort(chosen)]
        self.reference, self.level, self.seed = reference, level, seed
        self.block = 0  # that is being filled, or is the next to be compared
        self.looked = 0  # comparisons of it so far
        self.to_skip = 0  # parts before it that are still to come
        self.waiting: list[np.ndarray] = []  # features of its parts, and of later ones; of two blocks at most
        self.looks: list[tuple[float, float]] = []  # p-value and allowed p-value of the latest comparisons

    def add(self, features: np.ndarray) -> None:
        """Takes the features `(D,)` of one part. While a comparison lasts, parts beyond two blocks are left out.

        Raises:
            ValueError: if they have another length than those of the reference, or are not finite.
        """
        features = np.array(features, dtype=float)
        if features.shape != self.reference.shape[1:] or not np.isfinite(features).all():
            raise ValueError(
                f"features: {self.reference.shape[1]} finite numbers are needed, got an array of shape {features.shape}"
            )
        if self.to_skip:
            self.to_skip -= 1
        elif len(self.waiting) < MOST_BLOCKS_WAITING * LOOKS[-1]:
            self.waiting.append(features)

    @property
    def is_due(self) -> bool:
        """Whether there are parts enough for the next comparison."""
        return len(self.waiting) >= LOOKS[self.looked]

    def due_look(self) -> EmbeddingLook | None:
        """The next comparison, once there are parts enough; its p-value goes to [`EmbeddingTest.take`]."""
        if not self.is_due:
            return None
        allowed = block_level(compared_before(self.block), self.level) / len(LOOKS)
        seed = (self.seed, 3, self.block, self.looked)
        return EmbeddingLook(self.reference, np.array(self.waiting[: LOOKS[self.looked]]), allowed, seed)

    def take(self, look: EmbeddingLook, p_value: float) -> bool:
        """Takes the p-value of the comparison that was due; whether it is an alarm."""
        self.looks = [*self.looks[-KEPT_LOOKS + 1 :], (p_value, look.allowed)]
        self.looked += 1
        if self.looked == len(LOOKS):
            del self.waiting[: LOOKS[-1]]
            self._begin_next_block()
        return p_value <= look.allowed

    def _begin_next_block(self) -> None:
        self.block, self.looked = self.block + 1, 0
        while not is_compared(self.block):
            self.block += 1
            self.to_skip += LOOKS[-1]
        here = min(self.to_skip, len(self.waiting))
        del self.waiting[:here]
        self.to_skip -= here

    def state(self) -> dict:
        """Everything that parts have changed, as values JSON can hold."""
        return {
            "block": self.block,
            "looked": self.looked,
            "to_skip": self.to_skip,
            "level": self.level,
            "waiting": base64.b64encode(np.array(self.waiting, dtype="<f8").tobytes()).decode(),
            "blocks": self.looks,
        }

    def restore(self, state: dict) -> None:
        """Takes over what [`EmbeddingTest.state`] gave, or that of an earlier release; an error leaves the test in neither.

        Those compared every block; earlier ones still full blocks only. After the first blocks the test begins anew then, with
        what such a state's blocks have left of the level.

        Raises:
            ValueError, TypeError, KeyError: if it is damaged.
        """
        check_pairs(state, LATER_VALUES)
        self.waiting = _features_of(state["waiting"], self.reference.shape[1])
        self.looks = [(number(p_value), number(allowed)) for p_value, allowed in state["blocks"]]
        self.block, self.looked = whole(state.get("block", len(self.looks))), whole(state.get("looked", 0))
        if self.looked >= len(LOOKS):
            raise ValueError(f"{self.looked} looks at a block")
        self.to_skip = whole(state.get("to_skip", 0))
        if "level" in state:
            self.level = number(state["level"])
        elif self.block >= FIRST_BLOCKS:
            self.level = level_after(self.block, self.level)
            self.block, self.looked, self.waiting = 0, 0, []


def _features_of(saved: str | list[list[float]], length: int) -> list[np.ndarray]:
    """Features as [`EmbeddingTest.state`] writes them; earlier releases wrote lists of numbers."""
    if isinstance(saved, str):
        return list(np.frombuffer(base64.b64decode(saved, validate=True), dtype="<f8").reshape(-1, length))
    return [] if saved == [] else list(numbers(saved, None, length))
