"""How many parts a change takes to be seen: `delays.json` beside this file, simulated by training/benchmarks/monitoring.py."""

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Delay:
    """The median number of parts from a change to an alarm, where good scores are normal and move up.

    Args:
        shift: in standard deviations.
        change: good parts before it; 0 is production that differs from the start.
        median: in parts; None where fewer than half of the simulated streams raised an alarm within `horizon` parts.
        horizon: parts after the change that were simulated.
        simulated_scores: calibration scores of the simulation, the largest tabulated number that is not above the model's.
    """

    shift: float
    change: int
    median: float | None
    horizon: int
    simulated_scores: int


def expected_delays(scores: int) -> list[Delay]:
    """Delays for a model with so many calibration scores, at the default level and false-alarm rate; none below the table's.

    Args:
        scores: n.
    """
    table = json.loads(files(__package__).joinpath("delays.json").read_text(encoding="utf-8"))
    tabulated = [row["n"] for row in table["medians"] if row["n"] <= scores]
    return [
        Delay(row["shift"], row["change"], row["median"], table["horizon"], row["n"])
        for row in table["medians"]
        if tabulated and row["n"] == max(tabulated)
    ]
