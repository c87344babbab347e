"""The test of the operator's word: more good parts are rejected, by the operator, than the conformal threshold explains.

Like the test of the reject rate, of the parts that an operator reports as wrongly rejected: whatever share of the parts is
defective, a part is good and rejected with probability r at most, and r has the law Beta(n + 1 - k, k) over calibration sets.
Reports come late and not of every part. M_v of [`diffad.monitoring.reject_test`], without defects, rises with the number of
rejects, so that at any time the reports on parts from v on, which are fewer than the wrong rejects among these parts, give an
M_v that lies below that of all wrong rejects. Hence P(ever, for any v: prior_v M_v >= 1 / a) <= a whatever is reported when, as
long as each report is true and counts at the place of its part. Misses have no such test: nothing promises their rate.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from .reject_test import FACTORS, PARTS_PER_START, START_PRIOR, log_probability
from .urn import unspent


def log_evidence(parts: int, reported: Sequence[int], scores: int, rank: int) -> float:
    """Log of the highest prior_v M_v over the times v = 0, 25, 50, ... that more rejects may begin at.

    Args:
        parts: judged so far, defective ones included.
        reported: places, from 0 on, of parts that were reported as wrongly rejected; in any order.
        scores: n, calibration scores behind the threshold.
        rank: k of the threshold among them.
    """
    starts = np.arange(0, max(parts, 1), PARTS_PER_START)
    priors = (1 - START_PRIOR) * (unspent(starts) - unspent(starts + PARTS_PER_START))
    priors[0] += START_PRIOR
    rejects = len(reported) - np.searchsorted(np.sort(np.asarray(reported, dtype=float)), starts)
    a, b = float(scores + 1 - rank), float(rank)
    promised = log_probability(rejects, parts - starts, a, b)
    more = [log_probability(rejects, parts - starts, a, b / factor) for factor in FACTORS]
    return float((np.log(priors) + logsumexp(more, axis=0) - np.log(len(FACTORS)) - promised).max())
