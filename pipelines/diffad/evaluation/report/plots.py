"""The plots of a report as inline SVG whose colours are the page's own, so that they follow its light or dark scheme."""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Stand-ins that matplotlib takes for colours; the page's variables replace them in the SVG.
TEXT, LINE, GOOD, DEFECTIVE = "#000001", "#000002", "#000003", "#000004"
VARIABLES = {TEXT: "var(--text)", LINE: "var(--line)", GOOD: "var(--good)", DEFECTIVE: "var(--defective)"}
STYLE = {
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "diffad",  # the same report is the same file
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}
BINS = 40
FAR_OUT = 4  # scores this many times as far above the threshold as the others reach share the last bar, see `score_range`
LOWEST_EVIDENCE = -4  # log10, below which it says nothing more
MARGIN = 0.01  # of the width, on both sides: a threshold at the end is seen whole


def curve_plot(
    x: np.ndarray,
    y: np.ndarray,
    x_label: str,
    y_label: str,
    point: tuple[float, float] | None = None,
    x_limit: float = 1.0,
) -> str:
    """A curve of two rates, with the operating point marked."""
    with rc_context(STYLE):
        figure, axes = _new_figure((3.6, 3.1))
        shown = x <= x_limit
        axes.plot(x[shown], y[shown], color=GOOD, linewidth=2, solid_joinstyle="round", clip_on=False)
        if point is not None:
            axes.plot(*point, "o", color=DEFECTIVE, markersize=7, clip_on=False, label="at the threshold", zorder=3)
            axes.legend(loc="lower left" if x[0] == 0 and y[0] == 1 else "lower right")
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, x_limit), ylim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6))
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        return _svg(figure)


def score_histogram(groups: Mapping[str, tuple[Sequence[float], str]], threshold: float) -> str:
    """Shares of every group's scores over a common axis, with the threshold.

    Args:
        groups: name to scores and colour.
        threshold: drawn as a line.
    """
    scores = np.concatenate([np.asarray(values, dtype=float) for values, _ in groups.values()])
    start, end = score_range(scores, threshold)
    edges = np.linspace(start, end, BINS + 1)
    with rc_context(STYLE):
        figure, axes = _new_figure((11.0, 3.0))
        for name, (values, colour) in groups.items():
            shown = np.clip(values, edges[0], edges[-1])
            shares = np.full(len(shown), 1 / len(shown))
            axes.hist(
                shown, edges, weights=shares, histtype="stepfilled", color=colour, alpha=0.35, label=f"{name} ({len(shown):,})"
            )
            axes.hist(shown, edges, weights=shares, color=colour, histtype="step", linewidth=1.4)
        axes.axvline(threshold, color=TEXT, linewidth=1.2, linestyle=(0, (4, 3)), label=f"threshold {threshold:.2f}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(groups) + 1)  # above, where nothing is drawn
        axes.set(xlabel="image score" + (", last bar: all higher ones" if end < scores.max() else ""), ylabel="share of images")
        axes.set_xlim(start - MARGIN * (end - start), end + MARGIN * (end - start))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.grid(axis="x", visible=False)
        return _svg(figure)


def evidence_plot(points: Sequence[tuple[float, ...]], limits: Sequence[float]) -> str:
    """How the evidence of a monitor's tests of scores and of the reject rate has grown, with the limits of their alarms.

    Args:
        points: `(parts, log10 e-value of scores, log10 e-value of the reject rate)`.
        limits: log10 of the e-values at which the two raise an alarm.
    """
    parts, *values = np.array(points).T
    with rc_context(STYLE):
        figure, axes = _new_figure((11.0, 3.2))
        for name, colour, evidence, limit in zip(("scores", "reject rate"), (GOOD, DEFECTIVE), values, limits, strict=True):
            axes.plot(parts, np.maximum(evidence, LOWEST_EVIDENCE), color=colour, linewidth=1.6, label=name)
            axes.axhline(limit, color=colour, linewidth=1.0, linestyle=(0, (4, 3)), label=f"alarm of {name}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
        axes.set(xlabel="parts", ylabel="evidence of a change, log10")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        return _svg(figure)


def score_range(scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """Where the axis of a histogram starts and ends: the threshold and all scores but those far out lie in it.

    Far out is what lies `FAR_OUT` times as far above the threshold as the lowest score below it or the median above it.
    """
    start, end = min(scores.min(), threshold), max(scores.max(), threshold)
    distance = max(threshold - start, np.median(scores) - threshold)
    if distance > 0:
        end = min(end, threshold + FAR_OUT * distance)
    return (start, end) if end > start else (start - 0.5, start + 0.5)


def _new_figure(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    """The bare SVG element: no prolog, metadata or names that would clash with another plot's on the same page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
