"""Watches whether the parts that a server judges still are as the model's calibration images were."""

import hashlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from ..imaging.reading import read_image
from ..monitoring.drift_monitor import EMBEDDINGS, DriftMonitor
from ..monitoring.feedback_list import FeedbackList
from ..monitoring.lines import alarm_line, explanation_line
from ..monitoring.references import GROUPED, embedding_reference
from ..monitoring.rejected_parts import RejectedParts
from ..monitoring.state_digest import DamagedStateError, StateError, with_digest
from ..monitoring.suggestions import suggested_changes
from ..scoring.reference_parts import LEAST_PARTS
from .messages import ModelInfo, SentImage
from .metrics import Metrics

LOG = logging.getLogger("uvicorn.error")


class CategoryMonitors:
    """A monitor of each category of one model; they share the level.

    Args:
        info: of the model.
        level: probability that unchanged production ever raises an alarm.
        saved: states of models by their keys, as [`diffad.serve.saved_states.read_states`] gives them; one of this model and
            these settings is gone on from, in all categories or in none.
        with_feedback: whether operators' reports of wrongly rejected parts are tested, too.

    Attributes:
        damage: why that state could not be gone on from; None if it could, or there is none.
    """

    def __init__(self, info: ModelInfo, level: float, saved: Mapping[str, dict], with_feedback: bool = False):
        names = info.category_names or (None,)
        scores, rates = info.calibration_scores, info.false_alarm_rates
        self.references = dict(zip(names, info.references or [None] * len(names), strict=True))
        of_single_images = info.single_scores or [None] * len(names)
        self.not_tested, begin = {}, {}
        for name, of_category, single, rate in zip(names, scores, of_single_images, rates, strict=True):
            features, self.not_tested[name] = embedding_reference(self.references[name], rate)
            options = {"with_feedback": with_feedback, "defers_embeddings": True, "reference_features": features}
            begin[name] = partial(DriftMonitor, of_category, rate, level / len(names), single_scores=single, **options)
        self.monitors = {name: of_category() for name, of_category in begin.items()}
        self.rejected = {name: RejectedParts() for name in names} if with_feedback else {}
        settings = (info, level, with_feedback) if with_feedback else (info, level)
        if not all(self.not_tested.values()):
            settings = (*settings, "embeddings")
        if any(of_single_images):
            LOG.warning("the monitor: %s", GROUPED)
            settings = (*settings, tuple(of_single_images))
        self.key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        self.damage: str | None = None
        if self.key in saved:
            try:
                self._restore(saved[self.key])
            except StateError as error:
                self.damage = str(error)
                self.monitors = {name: of_category() for name, of_category in begin.items()}
        self._said = {name: set(monitor.alarms) for name, monitor in self.monitors.items()}
        if saved and self.key not in saved:
            LOG.warning("the monitor begins anew: %s", self._why_anew(saved))

    def _restore(self, saved: Mapping[str, dict]) -> None:
        """Goes on from a state. Some monitors may have done so when it raises.

        Raises:
            StateError: if that of a category is damaged.
        """
        if {name or "" for name in self.monitors} != saved.keys():
            raise DamagedStateError(f"it has the categories {', '.join(map(repr, saved))}")
        rejected = {name: _rejected_parts(saved[name or ""]) for name in self.rejected}
        for name, monitor in self.monitors.items():
            monitor.restore(saved[name or ""])
        self.rejected = rejected

    def _why_anew(self, saved: Mapping[str, dict]) -> str:
        """What its settings were when a state of these calibration scores was saved last, or that there is none."""
        for of_model in reversed(saved.values()):
            for name, state in of_model.items():
                monitor = self.monitors.get(name or None)
                with suppress(KeyError, AttributeError):  # a damaged state of another model
                    if monitor is not None and state["identity"] in (monitor.identity, monitor.identity_of_scores):
                        return monitor.other_settings(state) or "another model with the same calibration scores"
        return "no state of this model was saved"

    def update(self, rows: Sequence[dict], features: Sequence[np.ndarray | None] | None = None) -> None:
        """Takes judged images in their order; those of unknown products are no parts of any category.

        Args:
            features: pooled features `(D,)` of each, for the test of embeddings.
        """
        for row, of_image in zip(rows, features or [None] * len(rows), strict=True):
            if row["label"] != "unknown":
                category, score = row["category"], row["score"]
                monitor = self.monitors[category]
                monitor.update(score, of_image)
                if self.rejected and score > monitor.threshold:
                    self.rejected[category].add(monitor.parts - 1, row["name"], row["digest"])
        self._say_alarms()

    def work(self, recent: Callable[[str | None], list[SentImage]]) -> Callable[[], None] | None:
        """What needs time now, for a thread to do, or None: a test of embeddings, or to say what changed after an alarm.

        Args:
            recent: gives the latest images of a category.
        """
        self._say_alarms()
        for name, monitor in self.monitors.items():
            if monitor.has_due_look:
                return monitor.test_embeddings
            alarms = list(monitor.alarms)  # before images are chosen: a later one needs later images
            images = recent(name) if monitor.needs_explanation and self.references[name] is not None else []
            if len(images) >= LEAST_PARTS:
                return partial(self._explain, name, images, alarms)
        return None

    def _explain(self, name: str | None, images: Sequence[SentImage], alarms: Sequence[str]) -> None:
        monitor = self.monitors[name]
        read = (read_image(io.BytesIO(image.data), image.name) for image in images)
        found = suggested_changes(self.references[name], read)
        monitor.explain(found, len(alarms))
        LOG.warning("%s", explanation_line(alarms, found, name))

    def _say_alarms(self) -> None:
        """Logs each alarm once, also where nothing can explain it; called in the server's own thread."""
        for name, monitor in self.monitors.items():
            for test in [test for test in list(monitor.alarms) if test not in self._said[name]]:
                self._said[name].add(test)
                LOG.warning("%s", alarm_line(test, name))

    def take_feedback(self, feedback: FeedbackList) -> None:
        """Takes the operators' latest words on parts that were judged before."""
        for category, rejected in self.rejected.items():
            self.monitors[category].set_reports(rejected.places_of(feedback))
        self._say_alarms()

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
                    "embeddings": state.looks,
                    "embeddings_not_tested": self.not_tested[name] or None,
                    "suggestions": list(map(str, monitor.suggestions)),
                }
            )
        return summaries

    def show(self, metrics: Metrics) -> None:
        """Sets the gauges of the monitor."""
        metrics.forget_monitor()
        for one in self.summary():
            category = one["category"] or ""
            metrics.monitored.labels(category).set(one["parts"])
            metrics.changed.labels(category).set(one["changed"])
            for test, part in one["alarms"].items():
                metrics.alarm.labels(category, test).set(part)
            for suggestion in self.monitors[one["category"]].suggestions:
                metrics.suggestion.labels(category, suggestion.name, suggestion.words).set(suggestion.deviations)
            for p_value, allowed in one["embeddings"][-1:]:
                metrics.p_value.labels(category, EMBEDDINGS).set(p_value)
                metrics.p_limit.labels(category, EMBEDDINGS).set(allowed)
            for test, evidence in one["evidence"].items():
                metrics.evidence.labels(category, test).set(evidence)
                metrics.limit.labels(category, test).set(one["limits"][test])

    def state(self) -> dict:
        """All that parts have changed, as values JSON can hold."""
        states = {name or "": monitor.to_dict() for name, monitor in self.monitors.items()}
        for name, rejected in self.rejected.items():
            states[name or ""] = with_digest(states[name or ""] | {"rejected": rejected.to_dict()})
        return states


def _rejected_parts(state: dict) -> RejectedParts:
    try:
        return RejectedParts.restored(state["rejected"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedStateError(f"{type(error).__name__}: {error}") from error
