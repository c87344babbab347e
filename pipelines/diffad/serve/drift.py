"""Watches whether the parts that a server judges still are as the model's calibration images were."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..monitoring.drift_monitor import DriftMonitor, StateError
from ..monitoring.feedback_list import FeedbackList
from ..monitoring.rejected_parts import RejectedParts
from ..system.atomic import write_text
from ..system.text import one_line
from .messages import ModelInfo
from .metrics import Metrics

LOG = logging.getLogger("uvicorn.error")
FORMAT = 1


class CategoryMonitors:
    """A monitor of each category of one model; they share the level.

    Args:
        info: of the model.
        level: probability that unchanged production ever raises an alarm.
        saved: states of models by their keys, as [`read_states`] gives them; one of this model and these settings is gone on
            from.
        with_feedback: whether operators' reports of wrongly rejected parts are tested, too.

    Raises:
        StateError: if that is damaged.
    """

    def __init__(self, info: ModelInfo, level: float, saved: Mapping[str, dict], with_feedback: bool = False):
        names = info.category_names or (None,)
        scores, rates = info.calibration_scores, info.false_alarm_rates
        self.monitors = {
            name: DriftMonitor(of_category, rate, level / len(names), with_feedback=with_feedback)
            for name, of_category, rate in zip(names, scores, rates, strict=True)
        }
        self.rejected = {name: RejectedParts() for name in names} if with_feedback else {}
        settings = (info, level, with_feedback) if with_feedback else (info, level)
        self.key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        for name, state in saved.get(self.key, {}).items():
            self.monitors[name or None].restore(state)
            if with_feedback:
                self.rejected[name or None] = _restored(state)
        if saved and self.key not in saved:
            LOG.warning("the monitor begins anew: %s", self._why_anew(saved))

    def _why_anew(self, saved: Mapping[str, dict]) -> str:
        """What its settings were when a state of these calibration scores was saved last, or that there is none."""
        for of_model in reversed(saved.values()):
            for name, state in of_model.items():
                monitor = self.monitors.get(name or None)
                if monitor is not None and state["identity"] == monitor.identity:
                    return monitor.other_settings(state) or "another model with the same calibration scores"
        return "no state of this model was saved"

    def update(self, rows: Iterable[dict]) -> None:
        """Takes judged images in their order; those of unknown products are no parts of any category."""
        for row in rows:
            if row["label"] != "unknown":
                category, score = row["category"], row["score"]
                monitor = self.monitors[category]
                monitor.update(score)
                if self.rejected and score > monitor.threshold:
                    self.rejected[category].add(monitor.parts - 1, row["name"], row["digest"])

    def take_feedback(self, feedback: FeedbackList) -> None:
        """Takes the operators' latest words on parts that were judged before."""
        for category, rejected in self.rejected.items():
            self.monitors[category].set_reports(rejected.places_of(feedback))

    def summary(self) -> list[dict]:
        """State of each category's monitor; the keys are fields of [`diffad.serve.answers.CategoryState`]."""
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

    def state(self) -> dict:
        """All that parts have changed, as values JSON can hold."""
        return {
            name or "": monitor.to_dict() | ({"rejected": self.rejected[name].to_dict()} if self.rejected else {})
            for name, monitor in self.monitors.items()
        }


def _restored(state: dict) -> RejectedParts:
    try:
        return RejectedParts(**state["rejected"])
    except (KeyError, TypeError) as error:
        raise StateError(f"damaged ({type(error).__name__}: {error})") from error


class SavedStates:
    """States of monitors by the keys of their models, in a file.

    Args:
        path: of the file, which need not exist; None keeps them in memory.

    Raises:
        ValueError: if the file holds something else.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.of_models = {} if path is None else read_states(path)
        self._written = dict(self.of_models)

    def take(self, drift: CategoryMonitors) -> None:
        """Takes the state of a monitor, in the thread that changes it."""
        self.of_models[drift.key] = drift.state()

    def write(self) -> None:
        """Writes the file, whole or not at all, if a state is new; a full disk is logged."""
        if self.path is None or self.of_models == self._written:
            return
        states = dict(self.of_models)
        try:
            write_text(self.path, json.dumps({"format": FORMAT, "models": states}) + "\n")
            self._written = states
        except OSError as error:
            LOG.error("the monitor's state could not be saved: %s", error)


def read_states(path: Path) -> dict[str, dict]:
    """States of each model's monitors by category.

    Raises:
        ValueError: if the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        states = [state for of_model in saved["models"].values() for state in of_model.values()]
        if saved["format"] > FORMAT or not all({"identity", "settings"} <= set(state) for state in states):
            raise ValueError("not the state of a server")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: can't be read ({one_line(error)}); name another --monitor-state, or remove it") from None
    return saved["models"]
