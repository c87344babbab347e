"""The inspection itself: takes parts, has them judged, keeps the results, and has them delivered."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..system.text import one_line
from .backoff import Backoff
from .board import Board
from .delivery import Delivery, Sink
from .drift import JournaledMonitor
from .journal import JournalError, PartJournal
from .judge import Judge, ModelError
from .results import is_defective, make_result
from .sources.part import Part, Source
from .states import Cause

READ_AHEAD = 2  # parts that are decoded while another is judged
KEPT_RESULTS = 10_000  # in the journal, though they are delivered
FORGETTING_EVERY = 1000  # parts
PATIENCE = 5.0  # seconds


@dataclass
class InspectionSummary:
    """Counts of one run.

    Args:
        parts, defective, without_verdict: numbers of parts.
        dropped: frames of a live stream that came faster than they could be judged.
        undelivered: by sink the results that it has not got yet; they are in the journal.
    """

    parts: int
    defective: int
    without_verdict: int
    dropped: int
    undelivered: dict[str, int]


class Inspection:
    """Judges the parts of a source until it ends or is stopped.

    A result is in the journal before any sink hears of it, so that a killed process repeats at most the part that it was at,
    of which nobody has heard. What fails is tried again for as long as it fails, in waits of `backoff`:

    - source: no parts are taken until it works again;
    - model: the part waits for it, and is judged then;
    - journal: the part's result waits for it, and no sink hears of it before;
    - sink: parts are judged all the same, and their results delivered later.

    Args:
        sinks: of different addresses.
        drift: None monitors nothing.
        board: where the situation is shown.
        backoff: makes the waits of each of them.
        patience: seconds for which failing sinks are still tried at the end; None is `PATIENCE`.

    Raises:
        ValueError: if two sinks are one, which would get every result twice.
    """

    def __init__(
        self,
        source: Source,
        judge: Judge,
        journal: PartJournal,
        sinks: Sequence[Sink],
        drift: JournaledMonitor | None = None,
        board: Board | None = None,
        backoff: Callable[[], Backoff] = Backoff,
        patience: float | None = None,
    ):
        self.source, self.judge, self.journal, self.drift = source, judge, journal, drift
        self.board = board or Board(journal.next_number - 1)
        self._backoff = backoff
        addresses = [sink.address for sink in sinks]
        if len(set(addresses)) < len(addresses):
            raise ValueError(f"{max(addresses, key=addresses.count)}: is named twice with --to")
        self._deliveries = [
            Delivery(sink, journal, self.board, backoff(), PATIENCE if patience is None else patience) for sink in sinks
        ]
        self._waiting: queue.Queue[Part] = queue.Queue(1 if source.is_live else READ_AHEAD)
        self._stop, self._ended = threading.Event(), threading.Event()
        self._summary = InspectionSummary(0, 0, 0, 0, {})

    def stop(self) -> None:
        """Asks for the end after the part at hand; may be called by a signal handler."""
        self._stop.set()

    def run(self) -> InspectionSummary:
        """Returns when the source has ended, or after [`Inspection.stop`]."""
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        for thread in (reader, *self._deliveries):
            thread.start()
        while not self._stop.is_set():
            ended = self._ended.is_set()  # before looking for parts: none come after it
            try:
                self._take(self._waiting.get(timeout=0.1))
            except queue.Empty:
                if ended:
                    break
        self._stop.set()
        if self.drift is not None:
            self.drift.finish()
        reader.join(timeout=10)
        for delivery in self._deliveries:
            delivery.stop()
        for delivery in self._deliveries:
            delivery.join()
        self._summary.undelivered = {delivery.sink.address: delivery.left for delivery in self._deliveries if delivery.left}
        return self._summary

    def _take(self, part: Part) -> None:
        self.board.taken()
        row = self._until_it_works(lambda: self.judge.row(part), Cause.MODEL, ModelError)
        if row is None:
            return
        number, features = self.journal.next_number, row.pop("features", None)
        monitor = None if self.drift is None else self.drift.update(row, features, part.image)
        if self.drift is None or not self.drift.tests_embeddings:
            features = None  # which nobody would delete from the journal
        now, model = time.time_ns(), self.judge.model
        result = make_result(row, self.journal.identity, number, part.key.modified, now, model, monitor)
        if self._until_it_works(lambda: self._keep(part, result, features), Cause.JOURNAL, JournalError) is None:
            return
        self._summary.parts += 1
        if result["error"]:
            self._summary.without_verdict += 1
            self.board.not_judged(number, result["error"])
        else:
            self._summary.defective += is_defective(result)
            self.board.judged(number, is_defective(result))

    def _keep(self, part: Part, result: dict, features: np.ndarray | None) -> bool:
        if self.journal.next_number == result["number"]:
            self.journal.append(part.key, result, features)
        if self.drift is not None:
            self.drift.keep(result["number"])
        if result["number"] % FORGETTING_EVERY == 0:
            self.journal.forget(KEPT_RESULTS, None if self.drift is None else self.drift.saved_number)
        return True

    def _until_it_works(self, action: Callable, cause: Cause, expected: type[Exception]):
        """What the action returns, however often it must be tried; None once the inspection is stopped."""
        backoff = self._backoff()
        while True:
            try:
                done = action()
            except expected as error:
                self.board.failed(cause, "", one_line(error))
                if self._stop.wait(backoff.next()):
                    return None
                continue
            self.board.recovered(cause, "")
            return done

    def _read(self) -> None:
        """Puts parts into the queue; in a thread of its own, so that the next one is decoded meanwhile."""
        backoff = self._backoff()
        while not self._stop.is_set():
            try:
                for part in self.source.parts(self._stop):
                    backoff.reset()
                    self.board.recovered(Cause.SOURCE, self.source.address)
                    if part is not None:
                        self._put(part)
                break
            except Exception as error:  # whatever a camera's library raises: a thread that ended would take no part for ever
                self.board.failed(Cause.SOURCE, self.source.address, one_line(error) or type(error).__name__)
                self._stop.wait(backoff.next())
        self._ended.set()

    def _put(self, part: Part) -> None:
        while not self._stop.is_set():
            try:
                self._waiting.put(part, timeout=0.1 if not self.source.is_live else 0)
                return
            except queue.Full:
                if self.source.is_live:  # the newest frame takes the place of the one that nobody took
                    self._drop_waiting()

    def _drop_waiting(self) -> None:
        try:
            self._waiting.get_nowait()
            self._summary.dropped += 1
        except queue.Empty:
            pass
