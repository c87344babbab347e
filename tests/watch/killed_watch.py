"""Kills watches of a folder. Run as a script; the model judges by brightness.

    killed_watch.py FOLDER JOURNAL KILLS SHORTEST LONGEST SINK...

Each watch but the last is killed (SIGKILL) after a random time between SHORTEST and LONGEST seconds; the last one runs until
SIGTERM.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from diffad.watch.board import Board
from diffad.watch.drift import DriftSettings, JournaledMonitor
from diffad.watch.inspection import Inspection
from diffad.watch.journal import PartJournal
from diffad.watch.judge import Judge
from diffad.watch.sinks.opening import open_sink
from diffad.watch.sources.opening import open_source, source_address
from watch_stub import StubModel, fast_backoff


def main(folder: str, journal: str, kills: str, shortest: str, longest: str, *sinks: str) -> None:
    draw = random.Random(0)
    print("ready", flush=True)
    for _ in range(int(kills)):
        child = os.fork()  # what was imported already takes seconds
        if child == 0:
            watch(folder, journal, *sinks)
            os._exit(0)
        time.sleep(draw.uniform(float(shortest), float(longest)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the watch ended by itself"
    print("killed", flush=True)
    watch(folder, journal, *sinks)


def watch(folder: str, journal: str, *sinks: str) -> None:
    address = source_address(folder)
    with PartJournal(Path(journal), address) as parts:
        made = [open_sink(sink, parts.identity) for sink in sinks]
        source = open_source(address, parts.knows, settle=0.03)
        drift = JournaledMonitor(parts, StubModel(), DriftSettings(defect_rate=0.4))
        board = Board(parts.next_number - 1)
        inspection = Inspection(source, Judge(StubModel), parts, made, drift, board, fast_backoff, patience=20)
        signal.signal(signal.SIGTERM, lambda *_: inspection.stop())
        assert not inspection.run().undelivered


if __name__ == "__main__":
    main(*sys.argv[1:])
