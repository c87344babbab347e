"""The drift monitor of an inspection: sees every verdict once, over any number of kills."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..imaging.image_statistics import reduced
from ..monitoring.drift_monitor import DriftMonitor
from ..monitoring.lines import alarm_line, explanation_line
from ..monitoring.references import GROUPED, embedding_reference
from ..monitoring.saved_values import whole
from ..monitoring.state_digest import DIGEST, DamagedStateError, LaterStateError, StateError, check_content, with_digest
from ..monitoring.suggestions import RECENT_PARTS, suggested_changes
from ..scoring.reference_parts import LEAST_PARTS, ReferenceParts
from ..system.differences import differences
from ..system.text import one_line
from .journal import PartJournal
from .results import AS_CALIBRATED, CHANGED

SAVED_EVERY = 100  # parts; those after the saved state are replayed from the journal


@dataclass(frozen=True)
class DriftSettings:
    """Settings of [`DriftMonitor`], and whether to begin anew.

    Args:
        level, defect_rate: of [`DriftMonitor`].
        reset: forget what was seen, because its cause was mended.
    """

    level: float = 0.05
    defect_rate: float = 0.0
    reset: bool = False


class JournaledMonitor:
    """A monitor whose state lies in the journal. What takes time is done in threads, so that no verdict waits for it.

    Args:
        pipe: the model; of several categories `category` is monitored, and nothing is where that is None.
        report: takes lines for the operator.

    Raises:
        ValueError: if a setting can't be used.
    """

    def __init__(
        self,
        journal: PartJournal,
        pipe: Any,
        settings: DriftSettings,
        category: str | None = None,
        false_alarm_rate: float | None = None,
        report: Callable[[str], None] = lambda line: None,
    ):
        self._journal, self._belongs_to, self._report = journal, {"model": pipe.digest, "category": category}, report
        self._unsaved = 0
        self._saved_number: int | None = None
        self._recent: deque[Image.Image] = deque(maxlen=RECENT_PARTS)
        self._reference: ReferenceParts | None = None
        self._looking: threading.Thread | None = None
        self._explaining: threading.Thread | None = None
        self._said: set[str] = set()  # alarms
        self._saying = threading.Lock()
        self.monitor: DriftMonitor | None = None
        if pipe.category_names is not None and category is None:
            report("not monitored: a model of several categories; name the one to monitor with --category")
            return
        indices = pipe.category_indices(category, 1)
        index = 0 if indices is None else indices[0]
        rate = pipe.calibration.supported_rate(false_alarm_rate, index)
        scores, single = pipe.calibration.calibration_scores_of(index), pipe.calibration.single_scores_of(index)
        self._reference = pipe.calibration.reference_parts(index)
        features, reason = embedding_reference(self._reference, rate)
        if features is None:
            report(f"embeddings are not tested: {reason}")
        if single is not None:
            report(f"the monitor: {GROUPED}")
        options = {"reference_features": features, "single_scores": single, "defers_embeddings": True}
        new_monitor = partial(DriftMonitor, scores, rate, settings.level, settings.defect_rate, **options)
        self.monitor = new_monitor()
        if settings.reset or not self._goes_on():
            self.monitor = new_monitor()
            self._save(journal.next_number - 1)
        self._say_alarms()
        self._look_closer()

    @property
    def tests_embeddings(self) -> bool:
        """Whether it needs the features of parts."""
        return self.monitor is not None and self.monitor.embedding_test is not None

    @property
    def saved_number(self) -> int | None:
        """Number of the last part in the state that the journal holds; None where nothing is monitored."""
        return self._saved_number

    def update(self, row: dict, features: np.ndarray | None = None, image: Image.Image | None = None) -> str | None:
        """Takes the next part's row; what the monitor says then, None where nothing is monitored.

        A part without a verdict or of an unknown product is none of the monitored ones.

        Args:
            features: `(D,)`, pooled features of the part, where embeddings are tested.
            image: by which an alarm is explained, RGB.
        """
        if self.monitor is None:
            return None
        if _is_monitored(row):
            self.monitor.update(row["score"], features)
            if image is not None and self._reference is not None:
                self._recent.append(reduced(image))
        self._say_alarms()
        self._explain_alarms()
        self._look_closer()
        return CHANGED if self.monitor.alarms else AS_CALIBRATED

    def keep(self, number: int) -> None:
        """Saves the state now and then; called when a part is in the journal."""
        self._unsaved += 1
        if self.monitor is not None and self._unsaved >= SAVED_EVERY:
            self._save(number)

    def finish(self) -> None:
        """Waits until all that is known of alarms is said; called after the last part.

        A comparison of embeddings is not waited for: it is due again after the next start.
        """
        if self.monitor is None:
            return
        for _ in range(2):  # what is under way, and then alarms that were raised meanwhile
            if self._explaining is not None:
                self._explaining.join()
            self._explain_alarms()
        if self._explaining is not None:
            self._explaining.join()

    def _explain_alarms(self) -> None:
        """Has a thread say what changed in the latest images, after their alarms are said."""
        if self._explaining is not None and self._explaining.is_alive():
            return
        if self.monitor.needs_explanation and len(self._recent) >= LEAST_PARTS:
            of_now = (list(self._recent), list(self.monitor.alarms))
            self._say_alarms()  # the other thread may have raised one just now
            self._explaining = threading.Thread(target=self._explain, args=of_now, name="explanation", daemon=True)
            self._explaining.start()

    def _explain(self, images: Sequence[Image.Image], alarms: Sequence[str]) -> None:
        with self._saying_failure("say what changed"):
            found = suggested_changes(self._reference, images)
            self.monitor.explain(found, len(alarms))
            self._report(explanation_line(alarms, found))

    def _look_closer(self) -> None:
        """Has a thread compare embeddings where that is due."""
        if self.monitor.has_due_look and (self._looking is None or not self._looking.is_alive()):
            self._looking = threading.Thread(target=self._look, name="monitor", daemon=True)
            self._looking.start()

    def _look(self) -> None:
        with self._saying_failure("compare embeddings"):
            self.monitor.test_embeddings()
        self._say_alarms()

    @contextmanager
    def _saying_failure(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # such as too little memory
            text = f"{type(error).__name__}: {one_line(error)}"
            self._report(f"the monitor could not {what} ({text}); it tries again with the next part")

    def _say_alarms(self) -> None:
        with self._saying:
            for name in [name for name in list(self.monitor.alarms) if name not in self._said]:
                self._said.add(name)
                self._report(f"{alarm_line(name)}; see `diffad monitor`")

    def _goes_on(self) -> bool:
        """Whether the monitor could go on from the journal's state; it is to be made anew where it could not."""
        try:
            saved = self._journal.saved_monitor()
            if saved is not None:
                self._resume(saved)
            return saved is not None
        except (DamagedStateError, LaterStateError) as error:
            name = self._journal.set_monitor_aside()
            self._report(f"the monitor begins anew: {self._journal.path}: its state is {error}; it is kept there as '{name}'")
        except StateError as error:
            self._report(f"the monitor begins anew: {error}")
        return False

    def _resume(self, saved: dict) -> None:
        """Goes on from a saved state and the parts after it that it was judged with.

        Raises:
            DamagedStateError: if that is damaged. The monitor may have taken some of it then.
            StateError: if it is of another model, category or setting.
        """
        try:
            state = saved["state"]
            check_content({name: value for name, value in saved.items() if name != "state"})  # which has a digest of its own
            if saved.get("digest_of_state") != state.get(DIGEST):
                raise DamagedStateError("the state is not the one that belongs to its number")
            number = whole(saved["number"])
            if saved["model"] != self._belongs_to["model"]:
                raise StateError("another model")
            if other := differences(saved, {"category": self._belongs_to["category"]}, self._belongs_to):
                raise StateError(other)
            self.monitor.restore(state)
            said = set(self.monitor.alarms)
            after, last, left_out = number, self._journal.next_number - 1, 0
            while results := self._journal.results(after, last, SAVED_EVERY):
                for result in filter(_is_monitored, results):
                    if result["monitor"] is None:  # of a run without a monitor
                        left_out += 1
                    else:
                        self.monitor.update(result["score"], self._journal.features(result["number"]))
                after = results[-1]["number"]
        except StateError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedStateError(f"{type(error).__name__}: {one_line(error)}") from error
        self._saved_number, self._said = number, said
        if left_out:
            self._report(f"the monitor goes on; it leaves out what was judged without it ({left_out} of the kept results)")

    def _save(self, number: int) -> None:
        state = self.monitor.to_dict()
        about = with_digest(self._belongs_to | {"number": number, "digest_of_state": state[DIGEST]})
        self._journal.save_monitor(about | {"state": state})
        self._saved_number, self._unsaved = number, 0


def _is_monitored(row: dict) -> bool:
    """Whether a part has a verdict, and is of a known product."""
    return row.get("label") in ("good", "defective")
