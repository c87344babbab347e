"""What a monitor has seen, as its report shows it."""

import math

from ..monitoring.delays import expected_delays
from ..monitoring.drift_monitor import EMBEDDINGS, FEEDBACK, REJECTS, SCORES, DriftMonitor
from ..monitoring.references import GROUPED
from ..monitoring.summary import MonitorSummary, TestLine
from .monitor import MonitorRun


def summarize(run: MonitorRun) -> MonitorSummary:
    """The state of a run with everything that explains it."""
    monitor, state = run.monitor, run.monitor.state
    return MonitorSummary(
        changed=state.changed,
        parts=state.parts,
        rejected=state.rejected,
        skipped={name: count for name, count in run.sources.skipped.items() if count},
        level=monitor.level,
        false_alarm_rate=monitor.false_alarm_rate,
        defect_rate=monitor.defect_rate,
        calibration_scores=run.pipe.calibration.images_per_category[run.category],
        tests=_tests(monitor),
        likely_kind=state.likely_kind if SCORES in state.alarms else None,
        history=list(monitor.history.points),
        history_limits=[math.log10(state.limits[name]) for name in (SCORES, REJECTS)],
        looks=state.looks,
        delays=expected_delays(run.pipe.calibration.images_per_category[run.category]),
        suggestions=run.suggestions(),
        notes=_notes(run),
        reference_images=run.reference_images() if state.changed else [],
        recent_images=run.recent_images() if state.changed else [],
    )


def _tests(monitor: DriftMonitor) -> list[TestLine]:
    state = monitor.state
    lines = [
        TestLine(name, f"e-value {state.evidence[name]:.3g}", f"{state.limits[name]:.3g}", state.alarms.get(name))
        for name in (SCORES, REJECTS, FEEDBACK)
        if name in state.limits
    ]
    if EMBEDDINGS in state.limits:
        value = f"p-value {state.looks[-1][0]:.2g}" if state.looks else "too few parts for a comparison yet"
        limit = f"{state.looks[-1][1]:.2g}" if state.looks else "-"
        lines.append(TestLine(EMBEDDINGS, value, limit, state.alarms.get(EMBEDDINGS)))
    return lines


def _notes(run: MonitorRun) -> list[str]:
    notes = [] if run.pipe.calibration.single_scores_of(run.category) is None else [GROUPED]
    if run.settings.feedback is not None:
        reported, missed = len(run.monitor.reported), run.missed
        notes.append(f"feedback: {reported} of the rejected parts were reported as good, {missed} images as missed defects")
    if run.monitor.embedding_test is None:
        needed = "a folder of images, good ones as --reference, and a model whose score looks at features of the whole image"
        notes.append(f"embeddings are not tested: that needs {needed}, exported by this release where it is exported")
    if run.monitor.state.changed and run.settings.reference is None and run.known_reference is None:
        notes.append("what changed is not known: give good images with --reference")
    elif run.monitor.state.changed and not run.recent_images():
        notes.append("what changed is not known: the images of the latest parts are not where they were")
    if not expected_delays(run.pipe.calibration.images_per_category[run.category]):
        notes.append("too few calibration images for expected delays; only large changes can be seen")
    return notes
