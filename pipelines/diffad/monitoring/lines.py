"""What `serve` and `watch` say of a monitor, in one line each."""

from collections.abc import Sequence

from .suggestions import Suggestion


def alarm_line(test: str, category: str | None = None) -> str:
    """That a test has raised its alarm.

    Args:
        category: of a model of several.
    """
    return f"ALARM of the monitor{_of(category)} ({test}): production is not as calibrated"


def explanation_line(alarms: Sequence[str], found: Sequence[Suggestion], category: str | None = None) -> str:
    """What changed in the latest images.

    Args:
        alarms: tests that have raised one.
        found: as of [`diffad.monitoring.suggestions.suggested_changes`].
        category: of a model of several.
    """
    changes = "; ".join(map(str, found)) or "nothing that statistics tell"
    return f"changed in the latest images{_of(category)} ({', '.join(alarms)}): {changes}"


def _of(category: str | None) -> str:
    return "" if category is None else f" of {category}"
