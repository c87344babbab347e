"""The test of scores: a martingale of bets against the urn that ranks of good parts obey (see [`diffad.monitoring.urn`]).

    M_t = sum over changes of (prior of the change) * Q(groups of parts 1..t | change) / P(groups of parts 1..t)

P is the urn's law, which includes the uncertainty of the calibration set. A change is a time and a kind: scores rise, fall,
spread or narrow, or any other shape. Before its time Q predicts as P does. From then on it predicts group j with a probability
proportional to

    w_j (m_j + c_j) / (1 + s w_j)

where w is the kind's tilt, m_j the gaps in the group, c_j all earlier parts in it, and s solves
B = sum_j (m_j + c_j) s w_j / (1 + s w_j) for the B parts since the change. Before the change the masses are D_j = E_j / sum E
with independent gamma variables E_j, after it proportional to w_j D_j; given one latent scale s, E_j has the posterior mean
(m_j + c_j) / (1 + s w_j), and s is taken at its mode. So the factor 1 / (1 + s w_j) takes the parts since the change out of the
estimate of what was before. Whatever s is, as long as it depends on the past alone, Q is a probability law. Hence M is a
martingale under P with expectation 1, and P(ever M >= 1/a) <= a (Ville 1939).

Times of a change are kept in slots, begun 10 parts apart; two neighbouring ones are united when a slot is needed. Wealth may
move from bet to bet at any time, so that M stays a martingale.
"""

import numpy as np

from .saved_values import numbers, whole
from .urn import closest_start, group_sizes, normal_tilt, unspent, urn_probabilities

# Kind of change: mean and standard deviation of normal scores after it, and its prior probability.
KINDS = {
    "rise of 0.5 sd": (0.5, 1.0, 0.2),
    "rise of 1 sd": (1.0, 1.0, 0.2),
    "rise of 2 sd": (2.0, 1.0, 0.2),
    "fall of 0.5 sd": (-0.5, 1.0, 0.08),
    "fall of 1 sd": (-1.0, 1.0, 0.08),
    "fall of 2 sd": (-2.0, 1.0, 0.04),
    "wider spread": (0.0, 1.7, 0.06),
    "narrower spread": (0.0, 0.5, 0.06),
}
OTHER_PRIOR = 0.08  # of a change of any other shape
OTHER_STRENGTH = 20.0  # parts that the urn's law weighs in its predictions
START_PRIOR = 0.5  # that production differs from the first part on
PARTS_PER_START = 10
SLOTS = 10
SLOT_STATES = {"log_wealth": -np.inf, "since": 0.0, "scale": 0.0, "counts_since": 0.0}  # arrays and unused values


def log_sum(logarithms: np.ndarray, axis: int = -1) -> np.ndarray:
    """log of a sum of exponentials, which are not all 0; scipy's takes ten times as long for a few numbers."""
    highest = logarithms.max(axis=axis, keepdims=True)
    return np.log(np.exp(logarithms - highest).sum(axis=axis)) + highest.squeeze(axis)


class ScoreTest:
    """Evidence that ranks of parts called good have left the law of the calibration scores, for several streams at once.

    Args:
        gaps: k, into which k - 1 calibration scores and the threshold above them cut the good parts' scores; at least 2.
        streams: S, independent streams; one in production.

    Raises:
        ValueError: if there are fewer than 2 gaps: ranks among no scores say nothing.
    """

    def __init__(self, gaps: int, streams: int = 1):
        if gaps < 2:
            raise ValueError(f"{gaps - 1} calibration scores below the threshold, but ranks need at least 1")
        self.sizes = group_sizes(gaps)
        groups, kinds = len(self.sizes), len(KINDS)
        self.tilts = np.stack([normal_tilt(self.sizes, shift, scale) for shift, scale, _ in KINDS.values()])  # (kinds, K)
        self.prior = np.array([*(prior for _, _, prior in KINDS.values()), OTHER_PRIOR])
        self.parts = 0
        self.starts = [0]  # parts before each slot in use: the first is of changes from the start on
        self.counts = np.zeros((streams, groups))
        self.log_wealth = np.full((streams, SLOTS, kinds + 1), -np.inf)
        self.log_wealth[:, 0] = np.log(START_PRIOR * self.prior)
        self.since = np.zeros((streams, SLOTS, kinds + 1))  # B, parts since the change
        self.scale = np.zeros((streams, SLOTS, kinds))  # s
        self.counts_since = np.zeros((streams, SLOTS, groups))
        self._bet_on_change_now()

    def update(self, groups: np.ndarray) -> np.ndarray:
        """Takes one part of every stream and returns log M `(S,)`.

        Args:
            groups: `(S,)` group of each stream's part, in 0..K-1.
        """
        used, streams = len(self.starts), np.arange(len(groups))
        p = urn_probabilities(self.sizes, self.counts)  # (S, K)
        seen = p[streams, groups]  # (S,)
        # The kinds with a tilt
        ratio = self.tilts / (1 + self.scale[:, :used, :, None] * self.tilts)  # (S, used, kinds, K)
        mean = np.matmul(ratio, p[:, None, :, None])[..., 0]  # (S, used, kinds)
        self.log_wealth[:, :used, :-1] += np.log(ratio[streams, :, :, groups] / mean)
        # Any other shape, learned from the parts since the change
        of_group = self.counts_since[streams, :used, groups]  # (S, used)
        since = self.since[:, :used, -1]
        predicted = (OTHER_STRENGTH * seen[:, None] + of_group) / (OTHER_STRENGTH + since)
        self.log_wealth[:, :used, -1] += np.log(predicted / seen[:, None])
        # What is known from now on
        self.since[:, :used] += 1
        total = self.sizes.sum() + self.parts
        self.scale[:, :used] = self.since[:, :used, :-1] / (total * mean)  # a step of the fixed-point iteration for s
        self.counts[streams, groups] += 1
        self.counts_since[streams, :used, groups] += 1
        self.parts += 1
        self._bet_on_change_now()
        return self.log_evidence

    @property
    def log_evidence(self) -> np.ndarray:
        """log M `(S,)`, 0 before the first part."""
        of_kind = log_sum(self.log_wealth[:, : len(self.starts)], axis=1)
        waiting = np.log((1 - START_PRIOR) * unspent(self.parts + 1))
        return np.logaddexp(log_sum(of_kind), waiting)

    @property
    def kinds(self) -> np.ndarray:
        """`(S, kinds + 1)`: posterior probability of each of [`KINDS`] and of any other shape, given that there is a change."""
        of_kind = log_sum(self.log_wealth[:, : len(self.starts)], axis=1)
        return np.exp(of_kind - log_sum(of_kind)[:, None])

    def state(self) -> dict:
        """Everything that parts have changed, of a single stream, as values JSON can hold."""
        used = len(self.starts)
        arrays = {name: getattr(self, name)[0, :used].tolist() for name in SLOT_STATES}
        return {"parts": self.parts, "starts": self.starts, "counts": self.counts[0].tolist(), **arrays}

    def restore(self, state: dict) -> None:
        """Takes over what [`ScoreTest.state`] gave, bit for bit; an error leaves the test in neither state."""
        self.parts, self.starts = whole(state["parts"]), list(map(whole, state["starts"]))
        self.counts[0] = numbers(state["counts"], self.counts.shape[1])
        for name in SLOT_STATES:
            of_slots = getattr(self, name)[0]
            of_slots[: len(self.starts)] = numbers(state[name], len(self.starts), of_slots.shape[1])

    def _bet_on_change_now(self) -> None:
        """Moves the prior wealth of a change before the next part to the newest slot, every 10 parts to a new one."""
        if self.parts % PARTS_PER_START == 0:
            if len(self.starts) == SLOTS:
                self._unite_slots()
            self.starts.append(self.parts)
        spent = (1 - START_PRIOR) * (unspent(self.parts) - unspent(self.parts + 1))
        newest = self.log_wealth[:, len(self.starts) - 1]
        np.logaddexp(newest, np.log(spent * self.prior), out=newest)

    def _unite_slots(self) -> None:
        """Frees the last slot: of two neighbours the wealth is added up, and the richer one's knowledge is kept."""
        first = closest_start(self.starts, self.parts)
        earlier, later = self.log_wealth[:, first].copy(), self.log_wealth[:, first + 1].copy()
        richer = later > earlier  # (S, kinds + 1)
        for name, later_counts in {"since": richer, "scale": richer[:, :-1], "counts_since": richer[:, -1:]}.items():
            state = getattr(self, name)
            state[:, first] = np.where(later_counts, state[:, first + 1], state[:, first])
        self.log_wealth[:, first] = np.logaddexp(earlier, later)
        del self.starts[first + 1]
        for name, unused in SLOT_STATES.items():
            state = getattr(self, name)
            state[:, first + 1 : -1] = state[:, first + 2 :].copy()
            state[:, -1] = unused
