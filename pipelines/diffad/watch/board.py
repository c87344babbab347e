"""The situation of a running inspection, shared by its threads."""

import threading
from collections.abc import Callable

from .states import Cause, Situation


class Board:
    """Holds the current situation and wakes who waits for it to change.

    Args:
        number: of the latest part of a former run.
        report: takes a line for the operator whenever something fails, fails for another reason, or works again.
    """

    def __init__(self, number: int = 0, report: Callable[[str], None] = lambda line: None):
        self._report = report
        self._situation = Situation(number=number)
        self._version = 0
        self._changed = threading.Condition()

    @property
    def situation(self) -> Situation:
        with self._changed:
            return self._situation

    def taken(self) -> None:
        self._set(lambda now: now.taken())

    def judged(self, number: int, is_defective: bool) -> None:
        self._set(lambda now: now.judged(number, is_defective))

    def not_judged(self, number: int, reason: str) -> None:
        self._set(lambda now: now.not_judged(number, reason))

    def failed(self, cause: Cause, who: str, reason: str) -> None:
        before = self._set(lambda now: now.failed(cause, who, reason))
        if before.failures.get((cause, who)) != reason:
            self._report(f"{_named(cause, who)} failed: {reason}; trying again")

    def recovered(self, cause: Cause, who: str) -> None:
        before = self._set(lambda now: now.recovered(cause, who))
        if (cause, who) in before.failures:
            self._report(f"{_named(cause, who)} works again")

    def wake(self) -> None:
        """Ends all waiting now."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout: float) -> int:
        """Waits until something has changed since the number `seen`; returns the present number."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout)
            return self._version

    def _set(self, change: Callable[[Situation], Situation]) -> Situation:
        """Makes the change and returns the situation before it."""
        with self._changed:
            before = self._situation
            self._situation = change(before)
            if self._situation != before:
                self._version += 1
                self._changed.notify_all()
            return before


def _named(cause: Cause, who: str) -> str:
    return f"{cause.name.lower()} {who}".rstrip()
