"""The drift monitor of an inspection: sees every verdict once, over any number of kills."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..imaging.image_statistics import reduced
from ..monitoring.drift_monitor import DriftMonitor, StateError
from ..monitoring.references import embedding_reference
from ..monitoring.suggestions import suggested_changes
from ..scoring.reference_parts import LEAST_PARTS, ReferenceParts
from ..system.text import one_line
from .journal import PartJournal
from .results import AS_CALIBRATED, CHANGED

RECENT = 50  # parts whose images explain an alarm
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
    """A monitor whose state lies in the journal. Embeddings are compared in a thread, so that no verdict waits for it.

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
        self._journal, self._model, self._report = journal, pipe.digest, report
        self._unsaved = 0
        self._recent: deque[Image.Image] = deque(maxlen=RECENT)
        self._reference: ReferenceParts | None = None
        self._looking: threading.Thread | None = None
        self._said: set[str] = set()  # alarms
        self._saying = threading.Lock()
        self.monitor: DriftMonitor | None = None
        if pipe.category_names is not None and category is None:
            report("not monitored: a model of several categories; name the one to monitor with --category")
            return
        indices = pipe.category_indices(category, 1)
        index = 0 if indices is None else indices[0]
        rate = pipe.calibration.supported_rate(false_alarm_rate, index)
        scores = pipe.calibration.calibration_scores_of(index)
        self._reference = pipe.calibration.reference_parts(index)
        features, reason = embedding_reference(self._reference, rate)
        if features is None:
            report(f"embeddings are not tested: {reason}")
        self.monitor = DriftMonitor(scores, rate, settings.level, settings.defect_rate, features, defers_embeddings=True)
        saved = journal.saved_monitor()
        if settings.reset or saved is None or not self._resumed(saved):
            self._save(journal.next_number - 1)

    @property
    def tests_embeddings(self) -> bool:
        """Whether it needs the features of parts."""
        return self.monitor is not None and self.monitor.embedding_test is not None

    def update(self, row: dict, features: np.ndarray | None = None, image: Image.Image | None = None) -> str | None:
        """Takes the next part's row; what the monitor says then, None where nothing is monitored.

        A part without a verdict or of an unknown product is none of the monitored ones.

        Args:
            features: `(D,)`, pooled features of the part, where embeddings are tested.
            image: by which an alarm is explained, RGB.
        """
        if self.monitor is None:
            return None
        if row.get("label") in ("good", "defective"):
            self.monitor.update(row["score"], features)
            if image is not None and self._reference is not None:
                self._recent.append(reduced(image))
        self._say_alarms()
        if self.monitor.needs_explanation and len(self._recent) >= LEAST_PARTS:
            alarms = list(self.monitor.alarms)
            self.monitor.explain(suggested_changes(self._reference, self._recent), len(alarms))
            changes = "; ".join(map(str, self.monitor.suggestions)) or "nothing that statistics tell"
            self._report(f"changed in the latest images ({', '.join(alarms)}): {changes}")
        self._look_closer()
        return CHANGED if self.monitor.alarms else AS_CALIBRATED

    def keep(self, number: int) -> None:
        """Saves the state now and then; called when a part is in the journal."""
        self._unsaved += 1
        if self.monitor is not None and self._unsaved >= SAVED_EVERY:
            self._save(number)

    def _look_closer(self) -> None:
        """Has a thread compare embeddings where that is due."""
        if self.monitor.has_due_look and (self._looking is None or not self._looking.is_alive()):
            # Not waited for in the end: what is not done is due again after the next start.
            self._looking = threading.Thread(target=self._look, name="monitor", daemon=True)
            self._looking.start()

    def _look(self) -> None:
        try:
            self.monitor.test_embeddings()
        except Exception as error:  # such as too little memory
            text = f"{type(error).__name__}: {one_line(error)}"
            self._report(f"the monitor could not compare embeddings ({text}); it tries again with the next part")
        self._say_alarms()

    def _say_alarms(self) -> None:
        with self._saying:
            for name in [name for name in list(self.monitor.alarms) if name not in self._said]:
                self._said.add(name)
                self._report(f"ALARM of the monitor ({name}): production is not as calibrated; see `diffad monitor`")

    def _resumed(self, saved: dict) -> bool:
        """Whether the monitor could go on from a saved state and the parts after it."""
        if saved["model"] != self._model:
            self._report("the monitor begins anew: another model")
            return False
        try:
            self.monitor.restore(saved["state"])
        except StateError as error:
            self._report(f"the monitor begins anew: {error}")
            return False
        self._said = set(self.monitor.alarms)
        number, last = saved["number"], self._journal.next_number - 1
        while results := self._journal.results(number, last, SAVED_EVERY):
            for result in results:
                self.update(result, self._journal.features(result["number"]))
            number = results[-1]["number"]
        return True

    def _save(self, number: int) -> None:
        self._journal.save_monitor({"model": self._model, "number": number, "state": self.monitor.to_dict()})
        self._unsaved = 0
