"""What a controller sees of the inspection: Ready, Busy, OK, NG or Error; pure values and transitions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag


class State(IntEnum):
    """The numbers are those of the Modbus register, and stay."""

    READY = 1  # waiting for a part; no verdict is shown
    BUSY = 2  # a part is being judged
    OK = 3  # the latest part is good; the next one may come
    NG = 4  # the latest part is defective, or of a product that the model has never seen; the next one may come
    ERROR = 5  # something has failed; see the causes


class Cause(IntFlag):
    """What has failed; the bits are those of the Modbus register, and stay."""

    SOURCE = 1  # no images can be had
    MODEL = 2  # images can't be judged
    SINK = 4  # results can't be delivered; parts are judged all the same
    JOURNAL = 8  # results can't be kept, so that no part is taken
    PART = 16  # the latest part has no verdict: its image can't be read or judged


PART = (Cause.PART, "")


@dataclass(frozen=True)
class Situation:
    """State of the inspection at one moment; its methods return the next one.

    Args:
        activity: READY, BUSY, OK or NG: what the state is while nothing fails.
        number: of the latest part that was judged or given up; OK and NG are its.
        failures: by cause and by what has failed, such as a sink's name, the reason.
    """

    activity: State = State.READY
    number: int = 0
    failures: Mapping[tuple[Cause, str], str] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return State.ERROR if self.failures else self.activity

    @property
    def causes(self) -> Cause:
        """All that has failed."""
        causes = Cause(0)
        for cause, _ in self.failures:
            causes |= cause
        return causes

    def taken(self) -> "Situation":
        """A part is being judged. The part before it is no cause any longer."""
        return Situation(State.BUSY, self.number, self._failures_without(PART))

    def judged(self, number: int, is_defective: bool) -> "Situation":
        """The part has its verdict, and its number."""
        self._check_busy()
        return replace(self, activity=State.NG if is_defective else State.OK, number=number)

    def not_judged(self, number: int, reason: str) -> "Situation":
        """The part will have no verdict."""
        self._check_busy()
        return Situation(State.READY, number, {**self.failures, PART: reason})

    def failed(self, cause: Cause, who: str, reason: str) -> "Situation":
        """Something fails, or still fails; parts go through `not_judged`."""
        return replace(self, failures={**self.failures, (cause, who): reason})

    def recovered(self, cause: Cause, who: str) -> "Situation":
        """Something works again. With the last failure an old verdict goes, too: it would pass for a new one."""
        if (cause, who) not in self.failures:
            return self
        failures = self._failures_without((cause, who))
        activity = self.activity if failures or self.activity is State.BUSY else State.READY
        return Situation(activity, self.number, failures)

    def _failures_without(self, gone: tuple[Cause, str]) -> dict[tuple[Cause, str], str]:
        return {key: reason for key, reason in self.failures.items() if key != gone}

    def _check_busy(self) -> None:
        if self.activity is not State.BUSY:
            raise ValueError(f"a verdict while {self.activity.name}: no part was taken")
