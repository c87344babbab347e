"""Ctrl-C and SIGTERM end a run at the next whole step, so that nothing of it is lost."""

import signal
import threading
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(AbstractContextManager):
    """Notes the first of these signals while the block runs; the second one ends the process at once.

    Python allows it in the main thread only: elsewhere signals do what they always do.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.noted = False
        self._former: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def agreed(self, ask_others: bool) -> bool:
        """Whether to end after this step.

        Args:
            ask_others: whether this is one of the steps in which processes agree: it waits for all of them.
        """
        if self.accelerator.num_processes == 1:
            return self.noted
        if not ask_others:
            return False
        noted = torch.tensor(float(self.noted), device=self.accelerator.device)
        return self.accelerator.reduce(noted).item() > 0

    def _note(self, number: int, frame) -> None:
        self.noted = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def ignore_interruption(worker: int) -> None:
    """For data loading processes, which Ctrl-C in a terminal reaches, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
