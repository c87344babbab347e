"""Whether images that a model is to be updated with are of the production that it was calibrated on.

Two tests of the present model's scores of them. The monitor says whether they are unlike the calibration images. And a sample
of many good parts of which none was rejected is likely one of parts that the model let pass: calibrated on these, thresholds
would sink with every update. With n calibration scores and the k-th as threshold, none of m good parts is above it with
probability E[(1 - r)^m] over r ~ Beta(n + 1 - k, k).
"""

import math
from collections.abc import Sequence

import numpy as np

from ..scoring.conformal import default_rate, threshold_rank
from .drift_monitor import DriftMonitor
from .reject_test import log_probability

LEVEL = 0.05  # probability that a sample of unchanged production is refused, at most
MONITOR_SHARE = 0.8  # of the level; the rest is of the test for parts that were let pass


def sample_objection(
    calibration_scores: np.ndarray,
    scores: Sequence[float],
    level: float = LEVEL,
    single_scores: np.ndarray | None = None,
) -> str | None:
    """What speaks against good parts being a random sample of the production that a model was calibrated on; None if nothing.

    Args:
        calibration_scores: `(n,)` of the model.
        scores: image scores of the parts under the model, in an order that does not depend on them.
        level: probability that an unchanged sample is objected to, at most.
        single_scores: `(n,)` of one image drawn of each group, where the calibration scores are the highest of groups.
    """
    n, rate = len(calibration_scores), default_rate(len(calibration_scores))
    rank = threshold_rank(n, rate)
    if rank < 2:  # a single score tells nothing
        return None
    monitor = DriftMonitor(calibration_scores, level=MONITOR_SHARE * level, single_scores=single_scores)
    for score in scores:
        monitor.update(float(score))
    state = monitor.state
    if state.changed:
        test, part = min(state.alarms.items(), key=lambda item: item[1])
        return (
            f"they are not of the production that the model was calibrated on (test of {test}: alarm at image {part} of "
            f"{state.parts}; {state.rejected} called defective)"
        )
    passed = math.exp(log_probability(np.array(0), np.array(state.parts), n + 1 - rank, rank))
    if passed <= (1 - MONITOR_SHARE) * level and max(scores) <= monitor.cut:
        return (
            f"the model calls none of {state.parts} defective, where {rate:.1%} are expected (p = {passed:.2g}): these look "
            "like parts that it let pass, on which thresholds would sink; add the good parts that were rejected"
        )
    return None
