"""Brings results to one sink: in their order, again after failures, none left out."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from ..system.text import one_line
from .backoff import Backoff
from .board import Board
from .journal import PartJournal
from .states import Cause, Situation

AT_ONCE = 100  # results
BEAT = 1.0  # seconds after which a sink hears that the inspection lives, though nothing has happened


class Sink(Protocol):
    """Something that takes results.

    Args:
        address: as the user writes it; by this name the journal knows what was delivered.
        wants_latest_only: shows one result at a time, so that old ones are not brought to it after a break.
    """

    address: str
    wants_latest_only: bool

    def send(self, results: Sequence[dict], situation: Situation) -> None:
        """Takes results in the order of their numbers, perhaps none, and the situation; returns when it has them for certain.

        May be called again with results that it has got.

        Raises:
            Exception: of any kind, if it has not got all of them.
        """

    def close(self) -> None:
        """Ends connections."""


class Delivery(threading.Thread):
    """Delivers to a sink until it is stopped and nothing is left.

    Args:
        patience: seconds for which a failing sink is still tried after `stop`.
    """

    def __init__(self, sink: Sink, journal: PartJournal, board: Board, backoff: Backoff, patience: float):
        super().__init__(name=f"delivery to {sink.address}", daemon=True)
        self.sink, self._journal, self._board, self._backoff, self._patience = sink, journal, board, backoff, patience
        self._stopping = threading.Event()
        self._deadline = threading.Event()
        journal.add_sink(sink.address)

    @property
    def left(self) -> int:
        """Results that the sink has not got; at most one where the latest takes the place of the others."""
        missing = self._journal.next_number - 1 - self._journal.delivered(self.sink.address)
        return min(missing, 1) if self.sink.wants_latest_only else missing

    def stop(self) -> None:
        """Asks for the end once everything is delivered, or the patience is over."""
        self._stopping.set()
        timer = threading.Timer(self._patience, self._deadline.set)
        timer.daemon = True
        timer.start()
        self._board.wake()

    def run(self) -> None:
        seen = 0
        while not self._deadline.is_set():
            is_last = self._stopping.is_set()  # before looking for results: none come after it
            try:
                self._deliver()
            except Exception as error:  # whatever a client raises: a thread that ended would deliver nothing for ever
                self._board.failed(Cause.SINK, self.sink.address, one_line(error) or type(error).__name__)
                self._deadline.wait(self._backoff.next())
                continue
            self._backoff.reset()
            self._board.recovered(Cause.SINK, self.sink.address)
            if is_last:
                break
            seen = self._board.wait(seen, BEAT)
        with suppress(Exception):
            self.sink.close()

    def _deliver(self) -> None:
        """Everything that is there; an empty list at least, which carries the situation."""
        while True:
            situation = self._board.situation
            mark = self._journal.delivered(self.sink.address)
            if self.sink.wants_latest_only:
                mark = max(mark, situation.number - 1)
            # None that is newer than the situation: OK and NG always are the latest result's.
            results = self._journal.results(mark, situation.number, AT_ONCE)
            self.sink.send(results, situation)
            if results:
                self._journal.mark_delivered(self.sink.address, results[-1]["number"])
            if len(results) < AT_ONCE:
                return
