"""DriftMonitor: tests of one stream of parts, with a stated probability of ever calling unchanged production changed."""

import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..scoring.conformal import check_supported, conformal_threshold, default_rate, threshold_rank
from ..system.differences import differences
from .embedding_test import EmbeddingLook, EmbeddingTest
from .feedback_test import log_evidence as feedback_evidence
from .history import History
from .reject_test import RejectTest
from .saved_values import check_pairs, number, whole
from .score_test import KINDS, ScoreTest
from .state_digest import DamagedStateError, LaterStateError, StateError, check_content, with_digest
from .suggestions import Suggestion
from .urn import gap_index, group_of_gap, tie_breaker, tie_breakers

FORMAT = 1  # of states
SCORES, REJECTS, EMBEDDINGS, FEEDBACK = "scores", "reject rate", "embeddings", "feedback"
WEIGHTS = {SCORES: 3, REJECTS: 1, EMBEDDINGS: 1, FEEDBACK: 1}  # of the tests that there are, in the level
FORMER_SETTINGS = {"feedback": False}  # of states that are older than the setting
LATER_VALUES = (("reported", "feedback_evidence"), ("suggestions", "explained"))  # each pair came with one release


def shares_of_level(with_embeddings: bool, with_feedback: bool = False) -> dict[str, float]:
    """Share of the level that each test of a monitor has, by its name; they add up to 1."""
    tests = [SCORES, REJECTS, *[EMBEDDINGS] * with_embeddings, *[FEEDBACK] * with_feedback]
    return {name: WEIGHTS[name] / sum(WEIGHTS[each] for each in tests) for name in tests}


def without_waiting(saved: dict[str, Any]) -> dict[str, Any]:
    """A state of [`DriftMonitor.to_dict`] without the features that wait for a comparison, which are most of it.

    The parts that come when it is gone on from take their places. A damaged state stays as it is.
    """
    embeddings = saved.get("embedding_test")
    if not isinstance(embeddings, dict) or not embeddings.get("waiting"):
        return saved
    try:
        check_content(saved)  # a new digest would hide the damage
    except DamagedStateError:
        return saved
    return with_digest(saved | {"embedding_test": embeddings | {"waiting": ""}})


@dataclass(frozen=True)
class MonitorState:
    """What a monitor says after a part.

    Args:
        parts: judged so far.
        rejected: of these, above the threshold.
        alarms: number of parts at the first alarm of each test that has one. An alarm stays.
        evidence: e-value of each of the tests of scores, of the reject rate and of feedback: how many times as probable a
            change makes the parts; the alarm is at `limits`. That of the reject rate is as of the latest reject, that of
            feedback as of the latest reports. Infinite where it exceeds the floating-point range.
        limits: 1 / (the test's part of the level).
        looks: p-value and allowed p-value of the latest comparisons of the embedding test, at most 100.
        likely_kind: kind of change of the scores that explains the parts best; one of [`diffad.monitoring.score_test.KINDS`] or
            `other shape`.
    """

    parts: int
    rejected: int
    alarms: dict[str, int]
    evidence: dict[str, float]
    limits: dict[str, float]
    looks: list[tuple[float, float]]
    likely_kind: str

    @property
    def changed(self) -> bool:
        """Whether production has left the distribution of the calibration images."""
        return bool(self.alarms)


class DriftMonitor:
    """Says when production has left the distribution that a model was calibrated on.

    While all scores are exchangeable with the calibration scores, the probability that an alarm is ever raised, over the draw
    of calibration set and of production without end, is at most `level`; the tests share it by the union bound. Parts that are
    called defective enter the reject rate only. Methods may be called from several threads: each takes its turn.

    Args:
        calibration_scores: `(n,)` of good parts, or of groups of images, behind the model's threshold; in any order.
        false_alarm_rate: of the threshold, in (0, 1); None is 5 %, or the smallest rate that n scores support.
        level: in (0, 1).
        defect_rate: share of truly defective parts that is expected, in [0, 1); more rejects than they and the false alarms
            explain are an alarm.
        reference_features: `(r, D)` pooled features of good parts whose scores lie below `cut`; None leaves the
            embedding test out, and its part of the level goes to the others.
        seed: of tie-breaking and permutations.
        with_feedback: whether operators' reports of wrongly rejected parts are tested, too; see [`DriftMonitor.set_reports`].
        defers_embeddings: whether embeddings are compared by [`DriftMonitor.test_embeddings`] alone, not by the update that
            makes a comparison due; for programs that must not wait.
        single_scores: `(n,)` of one image drawn of each group, in any order, where the threshold counts groups of images and
            parts are single images; each part is then to be shown once. None: parts are as what the threshold counts.

    Attributes:
        threshold: a part with a higher score is called defective.
        cut: parts up to here are tested by scores and embeddings: the threshold, or of single scores the one of the same rank,
            which is no higher, because no single score is higher than its group's.
        identity: digest of calibration scores and reference features.
        identity_of_scores: digest of calibration scores alone, by which monitors without reference features are known.
        suggestions: what changed in the images at the latest alarm, by [`DriftMonitor.explain`].

    Raises:
        ValueError: if an argument is out of its range, a score is not finite, or there are too few scores for the rate.
    """

    def __init__(
        self,
        calibration_scores: np.ndarray,
        false_alarm_rate: float | None = None,
        level: float = 0.05,
        defect_rate: float = 0.0,
        reference_features: np.ndarray | None = None,
        seed: int = 0,
        with_feedback: bool = False,
        defers_embeddings: bool = False,
        single_scores: np.ndarray | None = None,
    ):
        of_threshold = _sorted_scores(calibration_scores)
        scores = of_threshold if single_scores is None else _sorted_scores(single_scores)
        if len(scores) != len(of_threshold) or (scores > of_threshold).any():
            raise ValueError("single_scores must be of one image of each group that the calibration scores are the highest of")
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        if not 0 <= defect_rate < 1:
            raise ValueError(f"defect_rate must lie in [0, 1), got {defect_rate}")
        rate = default_rate(len(scores)) if false_alarm_rate is None else false_alarm_rate
        check_supported(len(scores), rate)
        rank = threshold_rank(len(scores), rate)
        self.threshold, self.cut = conformal_threshold(of_threshold, rate), conformal_threshold(scores, rate)
        self.false_alarm_rate, self.level, self.defect_rate, self.seed = rate, level, defect_rate, seed
        shares = shares_of_level(reference_features is not None, with_feedback)
        self.levels = {name: share * level for name, share in shares.items()}
        self._scores, self._rank, self._breakers = scores, rank, tie_breakers(len(scores), seed)
        self._reference_features = reference_features
        self.score_test, self.reject_test, self.embedding_test = self._new_tests()
        self._group_of_gap = group_of_gap(self.score_test.sizes)
        self._feedback_evidence = -math.inf  # log, as of the latest reports
        self.reported: list[int] = []  # places of parts that operators reported as wrongly rejected
        self.identity_of_scores, self.identity = self._digests(of_threshold)
        self.alarms: dict[str, int] = {}
        self.suggestions: list[Suggestion] = []
        self._explained = 0  # alarms
        self.parts = 0
        self.history = History()
        self._defers_embeddings = defers_embeddings
        self._lock, self._testing = threading.Lock(), threading.Lock()

    @property
    def scores_below_threshold(self) -> int:
        """Calibration scores that good parts are ranked among; they limit how small a change can be seen."""
        return self._rank - 1

    def update(self, score: float, features: np.ndarray | None = None) -> MonitorState:
        """Takes the next part of production, each part once and in their order.

        Args:
            score: image score.
            features: `(D,)` pooled features; needed of parts called good if there are reference features, else ignored.

        Raises:
            ValueError: if the score is not finite, or features are missing or of a wrong length; the part is not counted then.
        """
        if not math.isfinite(score):
            raise ValueError(f"the score of part {self.parts + 1} is not finite")
        with self._lock:
            rejected = score > self.threshold
            gap = gap_index(self._scores, self._breakers, score, tie_breaker(self.parts, self.seed))
            # Parts between cut and threshold, and of equal scores those above by the tie breaker, are good but outside the urn.
            is_below = gap < self._rank
            if not rejected and self.embedding_test is not None:
                if features is None:
                    raise ValueError("the monitor has reference features, so that every part called good needs its features")
                if is_below and EMBEDDINGS not in self.alarms:  # which stays
                    self.embedding_test.add(features)
            self.parts += 1
            if self.reject_test.update(np.array([rejected]))[0] >= -math.log(self.levels[REJECTS]):
                self.alarms.setdefault(REJECTS, self.parts)
            if is_below:
                evidence = self.score_test.update(self._group_of_gap[[gap]])[0]
                if evidence >= -math.log(self.levels[SCORES]):
                    self.alarms.setdefault(SCORES, self.parts)
            self.history.add(self.parts, *self._log10_evidence().values())
        if not self._defers_embeddings:
            self.test_embeddings()
        return self.state

    @property
    def has_due_look(self) -> bool:
        """Whether [`DriftMonitor.test_embeddings`] has anything to do."""
        with self._lock:
            return self.embedding_test is not None and EMBEDDINGS not in self.alarms and self.embedding_test.is_due

    def test_embeddings(self) -> None:
        """Makes all comparisons of embeddings that are due. Other methods don't wait for it."""
        with self._testing:
            while (look := self._due_look()) is not None:
                p_value = look.p_value()
                with self._lock:
                    if self.embedding_test.take(look, p_value):
                        self.alarms.setdefault(EMBEDDINGS, self.parts)
                        self.embedding_test.waiting.clear()

    def _due_look(self) -> EmbeddingLook | None:
        with self._lock:
            return None if self.embedding_test is None or EMBEDDINGS in self.alarms else self.embedding_test.due_look()

    @property
    def needs_explanation(self) -> bool:
        """Whether an alarm was raised since [`DriftMonitor.explain`]."""
        return len(self.alarms) > self._explained

    def explain(self, suggestions: Sequence[Suggestion], count: int) -> None:
        """Keeps what changed in the images of the latest parts, as far as is known.

        Args:
            count: of alarms before the images were chosen; later ones are still to be explained.
        """
        with self._lock:
            self.suggestions, self._explained = list(suggestions), count

    def set_reports(self, reported: Sequence[int]) -> MonitorState:
        """Takes all reports of wrongly rejected parts so far in place of former ones.

        Args:
            reported: place of each such part among the parts, from 0 on; late reports count there, too.

        Raises:
            ValueError: if the monitor has no test of feedback, or a place twice or beyond the parts.
        """
        with self._lock:
            if FEEDBACK not in self.levels:
                raise ValueError("the monitor was made without a test of feedback: make it anew with with_feedback=True")
            if len(set(reported)) < len(reported) or not all(0 <= place < self.parts for place in reported):
                raise ValueError(f"reports must be different places among the {self.parts} parts")
            self.reported = sorted(reported)
            self._feedback_evidence = feedback_evidence(self.parts, self.reported, len(self._scores), self._rank)
            if self._feedback_evidence >= -math.log(self.levels[FEEDBACK]):
                self.alarms.setdefault(FEEDBACK, self.parts)
            return self._state(self._log10_evidence())

    @property
    def state(self) -> MonitorState:
        """What the monitor says of the parts so far."""
        with self._lock:
            return self._state(self._log10_evidence())

    def to_dict(self) -> dict[str, Any]:
        """All that parts have changed, as values JSON can hold; [`DriftMonitor.restore`] goes on from it bit for bit."""
        with self._lock:
            return with_digest(
                {
                    "format": FORMAT,
                    "identity": self.identity,
                    "settings": self._settings(),
                    "parts": self.parts,
                    "alarms": dict(self.alarms),
                    "score_test": self.score_test.state(),
                    "reject_test": self.reject_test.state(),
                    "embedding_test": None if self.embedding_test is None else self.embedding_test.state(),
                    "history": self.history.state(),
                    "reported": self.reported,
                    "feedback_evidence": max(self._feedback_evidence, -1e300),  # JSON has no infinity
                    "suggestions": [asdict(suggestion) for suggestion in self.suggestions],
                    "explained": self._explained,
                }
            )

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes on from what [`DriftMonitor.to_dict`] gave, in a monitor of the same scores and settings, or changes nothing.

        Raises:
            DamagedStateError: if it is damaged.
            StateError: if it is of other scores, references or settings.
        """
        try:
            if saved["format"] > FORMAT:
                raise LaterStateError
            check_content(saved)
            if different := self.other_settings(saved):
                raise StateError(different)
            if saved["identity"] != self.identity:
                raise StateError("of another model, calibration or reference")
            check_pairs(saved, LATER_VALUES)
            # All of it is read before anything is changed
            parts, alarms = whole(saved["parts"]), {name: whole(part) for name, part in saved["alarms"].items()}
            score_test, reject_test, embedding_test = self._new_tests()
            score_test.restore(saved["score_test"])
            reject_test.restore(saved["reject_test"])
            if embedding_test is not None:
                embedding_test.restore(saved["embedding_test"])
            history = History.restored(saved["history"])
            reported = list(map(whole, saved.get("reported", [])))
            evidence = number(saved.get("feedback_evidence", -math.inf))
            found = [Suggestion.restored(suggestion) for suggestion in saved.get("suggestions", [])]
            explained = whole(saved.get("explained", 0))
        except StateError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise DamagedStateError(f"{type(error).__name__}: {error}") from error
        with self._testing, self._lock:
            self.parts, self.alarms, self.history = parts, alarms, history
            self.score_test, self.reject_test, self.embedding_test = score_test, reject_test, embedding_test
            self.reported, self._feedback_evidence = reported, evidence
            self.suggestions, self._explained = found, explained

    def _new_tests(self) -> tuple[ScoreTest, RejectTest, EmbeddingTest | None]:
        """The tests before the first part."""
        reference = self._reference_features
        return (
            ScoreTest(self._rank),
            RejectTest(len(self._scores), self._rank, self.defect_rate),
            None if reference is None else EmbeddingTest(reference, self.levels[EMBEDDINGS], self.seed),
        )

    def other_settings(self, saved: dict[str, Any]) -> str:
        """Settings that a saved state has otherwise than this monitor, such as `level 0.05 there, 0.1 now`; empty for none."""
        return differences(saved["settings"], self._settings(), FORMER_SETTINGS)

    def _settings(self) -> dict[str, Any]:
        return {
            "false_alarm_rate": self.false_alarm_rate,
            "level": self.level,
            "defect_rate": self.defect_rate,
            "reference": self.embedding_test is not None,
            "feedback": FEEDBACK in self.levels,
            "seed": self.seed,
        }

    def _digests(self, of_threshold: np.ndarray) -> tuple[str, str]:
        digest = hashlib.sha256(of_threshold.tobytes())
        if self._scores is not of_threshold:
            digest.update(self._scores.tobytes())
        of_scores = digest.hexdigest()[:16]
        if self.embedding_test is not None:
            digest.update(self.embedding_test.reference.tobytes())
        return of_scores, digest.hexdigest()[:16]

    def _log10_evidence(self) -> dict[str, float]:
        return {
            SCORES: float(self.score_test.log_evidence[0]) / math.log(10),
            REJECTS: float(self.reject_test.log_evidence[0]) / math.log(10),
        }

    def _state(self, evidence: dict[str, float]) -> MonitorState:
        kinds = [*KINDS, "other shape"]
        if FEEDBACK in self.levels:
            evidence = evidence | {FEEDBACK: self._feedback_evidence / math.log(10)}
        return MonitorState(
            parts=self.parts,
            rejected=int(self.reject_test.rejects[0]),
            alarms=dict(self.alarms),
            evidence={name: 10**value if value < 308 else math.inf for name, value in evidence.items()},
            limits={name: 1 / level for name, level in self.levels.items()},
            looks=[] if self.embedding_test is None else list(self.embedding_test.looks),
            likely_kind=kinds[int(self.score_test.kinds[0].argmax())],
        )


def _sorted_scores(values: np.ndarray) -> np.ndarray:
    scores = np.sort(np.asarray(values, dtype=float))
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError("calibration scores must be a list of finite numbers")
    return scores
