"""Watches whether the parts that a server judges still are as the model's calibration images were."""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from ..monitoring.drift_monitor import DriftMonitor, StateError
from ..system.atomic import write_text
from ..system.text import one_line
from .messages import ModelInfo
from .metrics import Metrics

LOG = logging.getLogger("uvicorn.error")
FORMAT = 1


class Drift:
    """A monitor of each category of one model; they share the level.

    Args:
        info: of the model.
        level: probability that unchanged production ever raises an alarm.
        state: JSON file to go on from, with what was seen of each model that was served with it; None begins anew.

    Raises:
        ValueError: if the file is no such state, or was written with another level.
    """

    def __init__(self, info: ModelInfo, level: float, state: Path | None):
        names = info.category_names or (None,)
        scores, rates = info.calibration_scores, info.false_alarm_rates
        self.monitors = {
            name: DriftMonitor(of_category, rate, level / len(names))
            for name, of_category, rate in zip(names, scores, rates, strict=True)
        }
        self.path = state
        self._key = hashlib.sha256(repr(info).encode()).hexdigest()[:16]
        self._models = {} if state is None else read_state(state)
        try:
            for name, saved in self._models.get(self._key, {}).items():
                self.monitors[name or None].restore(saved)
        except (StateError, KeyError) as error:
            raise ValueError(f"{state}: can't go on from it: {one_line(error)}; name another --monitor-state") from None
        self._is_saved = True

    def update(self, rows: Iterable[dict]) -> None:
        """Takes judged images in their order; those of unknown products are no parts of any category."""
        for row in rows:
            if row["label"] != "unknown":
                self.monitors[row["category"]].update(row["score"])
                self._is_saved = False

    def summary(self) -> list[dict]:
        """State of each category's monitor; the keys are fields of [`diffad.serve.answers.MonitorState`]."""
        summaries = []
        for name, monitor in self.monitors.items():
            state = monitor.state
            # Beyond the floating-point range they are infinite, which JSON does not have.
            evidence = {test: min(value, 1e308) for test, value in state.evidence.items()}
            summaries.append(
                {
                    "category": name,
                    "parts": state.parts,
                    "rejected": state.rejected,
                    "changed": state.changed,
                    "alarms": state.alarms,
                    "evidence": evidence,
                    "limits": state.limits,
                }
            )
        return summaries

    def show(self, metrics: Metrics) -> None:
        """Sets the gauges of the monitor."""
        for one in self.summary():
            category = one["category"] or ""
            metrics.monitored.labels(category).set(one["parts"])
            metrics.changed.labels(category).set(one["changed"])
            for test, evidence in one["evidence"].items():
                metrics.evidence.labels(category, test).set(evidence)
                metrics.limit.labels(category, test).set(one["limits"][test])

    def save(self) -> None:
        """Writes the state, whole or not at all, if there is something new and a file to write it to; a full disk is logged."""
        if self.path is None or self._is_saved:
            return
        self._is_saved = True  # before: parts may come meanwhile
        self._models[self._key] = {name or "": monitor.to_dict() for name, monitor in self.monitors.items()}
        try:
            write_text(self.path, json.dumps({"format": FORMAT, "models": self._models}) + "\n")
        except OSError as error:
            self._is_saved = False
            LOG.error("the monitor's state could not be saved: %s", error)


def read_state(path: Path) -> dict[str, dict]:
    """Saved monitors of each model by category.

    Raises:
        ValueError: if the file is no state of a served monitor.
    """
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] > FORMAT or not all(isinstance(of_model, dict) for of_model in saved["models"].values()):
            raise ValueError("not the state of a server")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: can't be read ({one_line(error)}); name another --monitor-state, or remove it") from None
    return saved["models"]
