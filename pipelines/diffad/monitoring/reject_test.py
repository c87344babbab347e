"""The test of the reject rate: more parts are called defective than the conformal threshold and the known defects explain.

The threshold is the k-th lowest of n calibration scores, so that a good part exceeds it with a probability r that is unknown
but has a known law over draws of the calibration set, Beta(n + 1 - k, k). With a share of at most d of truly defective parts,
parts are rejected with probability rho = d + (1 - d) r at most. For every time v that a change may begin at, the parts from v
on are compared by their number T and that of rejects x alone:

    M_v = Q(x of T) / P(x of T),   P(x of T) = E[rho^x (1 - rho)^(T - x)] over r ~ Beta(n + 1 - k, k)

and Q is the same over r ~ Beta(n + 1 - k, k / f), a mean of these over factors f > 1. M_v is a martingale with mean 1 of the
parts from v on, whatever came before, so that by Ville's inequality and the union bound

    P(ever, for any v: prior_v M_v >= 1 / a) <= sum over v of a prior_v <= a.

The density of Q's r relative to P's rises in r. By total positivity (Karlin 1968) M_v then rises in x for every T, so that a
part less rejected never raises it: fewer defects than d, or fewer false alarms, can't break the bound. Unlike the test of
scores it does not learn r from production, because it asks for the rate that was promised.
"""

import numpy as np
from scipy.special import betaln, gammaln, logsumexp

from .saved_values import number, numbers, whole
from .urn import closest_start, unspent

FACTORS = (1.5, 3.0, 10.0)  # f, about by how much rejects of good parts become more frequent
START_PRIOR = 0.5  # that the rate is another from the first part on
PARTS_PER_START = 25
SLOTS = 12


def log_probability(rejects: np.ndarray, parts: np.ndarray, a: float, b: float, defect_rate: float = 0.0) -> np.ndarray:
    """log of E[rho^x (1 - rho)^(T - x)] over r ~ Beta(a, b) with rho = d + (1 - d) r: of one sequence of T parts, x rejected.

    Exact: (d + (1 - d) r)^x is expanded by the binomial theorem into terms that are all positive.

    Args:
        rejects, parts: x and T, of any one shape; whole numbers.
        a, b: positive.
        defect_rate: d, in [0, 1).
    """
    rejects, parts = np.broadcast_arrays(np.asarray(rejects, dtype=float), np.asarray(parts, dtype=float))
    good = parts - rejects
    if defect_rate == 0:
        return betaln(a + rejects, b + good) - betaln(a, b)
    i = np.arange(int(rejects.max()) + 1)  # rejects among good parts
    x = rejects[..., None]
    others = np.maximum(x - i, 0)
    log_choose = gammaln(x + 1) - gammaln(i + 1) - gammaln(others + 1)
    terms = log_choose + others * np.log(defect_rate) + (i + good[..., None]) * np.log1p(-defect_rate)
    terms = terms + betaln(a + i, b + good[..., None]) - betaln(a, b)
    return logsumexp(np.where(i <= x, terms, -np.inf), axis=-1)


class RejectTest:
    """Evidence that more parts are rejected than promised, for several streams at once.

    Args:
        scores: n, calibration scores behind the threshold.
        rank: k of the threshold among them.
        defect_rate: d, share of truly defective parts that is expected, in [0, 1).
        streams: S, independent streams; one in production.
    """

    def __init__(self, scores: int, rank: int, defect_rate: float = 0.0, streams: int = 1):
        self.a, self.b, self.defect_rate = float(scores + 1 - rank), float(rank), defect_rate
        self.parts = 0
        self.rejects = np.zeros(streams)
        self.starts = [0]  # parts before each
        self.log_priors = [float(np.log(START_PRIOR))]
        self.rejects_before = np.zeros((streams, SLOTS))
        self.log_evidence = np.full(streams, np.log(START_PRIOR))

    def update(self, rejected: np.ndarray) -> np.ndarray:
        """Takes one part of every stream and returns the log of the highest prior_v M_v `(S,)`, as of the latest reject.

        A part that is not rejected lowers every M_v, so that it is not worth the time.

        Args:
            rejected: `(S,)` bool.
        """
        if self.parts % PARTS_PER_START == 0:
            self._open_slot()
        self.parts += 1
        self.rejects += rejected
        if not rejected.any():
            return self.log_evidence
        since = self.parts - np.array(self.starts)
        rejects = self.rejects[:, None] - self.rejects_before[:, : len(since)]  # (S, slots)
        promised = log_probability(rejects, since, self.a, self.b, self.defect_rate)
        more = [log_probability(rejects, since, self.a, self.b / factor, self.defect_rate) for factor in FACTORS]
        ratios = logsumexp(more, axis=0) - np.log(len(FACTORS)) - promised
        self.log_evidence = (ratios + np.array(self.log_priors)).max(axis=1)
        return self.log_evidence

    def state(self) -> dict:
        """Everything that parts have changed, of a single stream, as values JSON can hold."""
        return {
            "parts": self.parts,
            "rejects": float(self.rejects[0]),
            "starts": self.starts,
            "log_priors": self.log_priors,
            "rejects_before": self.rejects_before[0, : len(self.starts)].tolist(),
            "log_evidence": float(self.log_evidence[0]),
        }

    def restore(self, state: dict) -> None:
        """Takes over what [`RejectTest.state`] gave, bit for bit; an error leaves the test in neither state."""
        self.parts, self.rejects[0] = whole(state["parts"]), whole(state["rejects"])
        self.starts = list(map(whole, state["starts"]))
        self.log_priors = numbers(state["log_priors"], len(self.starts)).tolist()
        self.rejects_before[0, : len(self.starts)] = numbers(state["rejects_before"], len(self.starts))
        self.log_evidence[0] = number(state["log_evidence"])

    def _open_slot(self) -> None:
        """Begins to count for a change from now on; without a free slot the later of two close times is given up."""
        if len(self.starts) == SLOTS:
            dropped = closest_start(self.starts, self.parts) + 1
            del self.starts[dropped], self.log_priors[dropped]
            self.rejects_before[:, dropped:-1] = self.rejects_before[:, dropped + 1 :].copy()
        prior = (1 - START_PRIOR) * (unspent(self.parts) - unspent(self.parts + PARTS_PER_START))
        self.rejects_before[:, len(self.starts)] = self.rejects
        self.starts.append(self.parts)
        self.log_priors.append(float(np.log(prior)))
