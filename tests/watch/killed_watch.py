"""What the fault tests start and kill. Run as a script:

killed_watch.py FOLDER JOURNAL SINK...     watches with a model that judges by brightness
killed_watch.py camera FOLDER COUNT PAUSE  writes images in two halves, a defective one at every third number
"""

import io
import signal
import sys
import time
from pathlib import Path

from diffad.watch.board import Board
from diffad.watch.drift import Drift, DriftSettings
from diffad.watch.inspection import Inspection
from diffad.watch.journal import PartJournal
from diffad.watch.judge import Judge
from diffad.watch.sinks.opening import open_sink
from diffad.watch.sources.opening import open_source, source_address
from watch_stub import StubModel, fast_backoff, grey


def watch(folder: str, journal: str, *sinks: str) -> None:
    address = source_address(folder)
    with PartJournal(Path(journal), address) as parts:
        made = [open_sink(sink, parts.identity) for sink in sinks]
        source = open_source(address, parts.knows, settle=0.03)
        drift = Drift(parts, StubModel(), DriftSettings(defect_rate=0.4))
        board = Board(parts.next_number - 1)
        inspection = Inspection(source, Judge(StubModel), parts, made, drift, board, fast_backoff, patience=20)
        signal.signal(signal.SIGTERM, lambda *_: inspection.stop())
        assert not inspection.run().undelivered


def camera(folder: str, count: str, pause: str) -> None:
    for number in range(int(count)):
        body = io.BytesIO()
        grey(220 if number % 3 == 0 else 20).resize((64, 64)).save(body, ("PNG", "JPEG")[number % 2])
        data = body.getvalue()
        cut = 1 + number * 37 % (len(data) - 1)
        with (Path(folder) / f"{number:06d}.{'png' if number % 2 == 0 else 'jpg'}").open("wb", buffering=0) as file:
            file.write(data[:cut])
            time.sleep(float(pause) * (number % 4) / 2)  # also longer than a file must stay unchanged
            file.write(data[cut:])
        time.sleep(float(pause))


if __name__ == "__main__":
    camera(*sys.argv[2:]) if sys.argv[1] == "camera" else watch(*sys.argv[1:])
