"""diffad watch"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .options import Category, Device, ExportedPrecision, FalseAlarmRate, Model, Profile


def watch(
    source: Annotated[
        str, typer.Argument(help="Folder that a camera writes to; video file; URL of an MJPEG or RTSP stream; or /dev/video0.")
    ],
    model: Model,
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            help="Where results go; may be given several times: NAME.csv, NAME.jsonl, http(s)://..., mqtt(s)://HOST/PREFIX, "
            "modbus://HOST/FIRST_REGISTER.",
        ),
    ],
    journal: Annotated[Path, typer.Option(help="File that keeps what was judged and delivered; on a local disk.")] = Path(
        "watch.journal"
    ),
    false_alarm_rate: FalseAlarmRate = None,
    category: Category = None,
    profile: Profile = None,
    once: Annotated[bool, typer.Option("--once", help="Judge what is there and end, in place of waiting for more.")] = False,
    interval: Annotated[float, typer.Option(help="Least seconds between two frames of a video or stream.", min=0)] = 0.0,
    settle: Annotated[float, typer.Option(help="Seconds for which a file must not change to be complete.", min=0.02)] = 0.1,
    patience: Annotated[float, typer.Option(help="Seconds for which a file that can't be read is waited for.", min=0)] = 10.0,
    defect_rate: Annotated[float, typer.Option(help="Share of truly defective parts that is normal, for the monitor.")] = 0.0,
    level: Annotated[float, typer.Option(help="Probability that the monitor ever calls unchanged production changed.")] = 0.05,
    reset_monitor: Annotated[
        bool, typer.Option("--reset-monitor", help="Begin the monitor anew, after the cause of its alarm was mended.")
    ] = False,
    device: Device = None,
    precision: ExportedPrecision = None,
) -> None:
    """Judge parts as they come and tell the line: each part once, through kills, restarts and failures.

    Runs until it is stopped (SIGINT, SIGTERM) or the video ends. What fails (source, model, sink, disk) is tried again for as
    long as it fails, and said on stderr; results wait in the journal until each sink has got them. The same command goes on
    where the last run ended. The drift monitor of `diffad monitor` sees every verdict.

    Exit codes: 0 all results were delivered, 1 an error, or results that wait in the journal for a sink.

    Examples:

    ```
    diffad watch camera --model exported --to results.csv --to mqtt://broker/line1/camera2
    diffad watch http://camera/video.mjpg --model exported --interval 0.5 --to modbus://plc/100
    diffad watch camera --model runs/part --to results.csv --once
    ```
    """
    from ..watch.board import Board
    from ..watch.drift import DriftSettings, JournaledMonitor
    from ..watch.inspection import Inspection
    from ..watch.journal import PartJournal
    from ..watch.judge import Judge
    from ..watch.sinks.opening import open_sink
    from ..watch.sources.addresses import without_credentials
    from ..watch.sources.opening import is_live, open_source, source_address
    from .loading import load_scoring

    address = source_address(source)
    if not journal.parent.is_dir():
        raise FileNotFoundError(f"{journal.parent}: no such folder")
    with PartJournal(journal, without_credentials(address), remembers=not is_live(address)) as parts:
        sinks = [open_sink(name, parts.identity) for name in to]
        watched = open_source(address, parts.knows, once, interval, settle, patience, _say)
        judge = Judge(partial(_load, load_scoring, model, device, profile, precision), category, false_alarm_rate)
        judge.pipe.calibration.supported_rates(false_alarm_rate, judge.pipe.category_indices(category, 1))
        judged_with = {"model": judge.model, "category": category, "false_alarm_rate": false_alarm_rate}
        if other := parts.begin_run(judged_with):
            _say(f"{journal}: parts so far were judged with other settings ({other}); none of them is judged again")
        settings = DriftSettings(level, defect_rate, reset_monitor)
        drift = JournaledMonitor(parts, judge.pipe, settings, category, false_alarm_rate, _say)
        inspection = Inspection(watched, judge, parts, sinks, drift, Board(parts.next_number - 1, _say))
        typer.echo(f"watching {without_credentials(source)}", err=True)
        with _stopped_by_signals(inspection.stop):
            summary = inspection.run()
    counts = f"{summary.parts} parts, {summary.defective} of them called defective, {summary.without_verdict} without a verdict"
    typer.echo(counts + (f"; {summary.dropped} frames left out" if summary.dropped else ""))
    for name, left in summary.undelivered.items():
        typer.echo(f"{name} has not got {left} results; they wait in {journal}, the same command delivers them", err=True)
    if summary.undelivered:
        raise typer.Exit(1)


def _load(load_scoring: Callable, model: str, device: str | None, profile: str | None, precision: str | None):
    """The model, without progress bars of single parts."""
    pipe = load_scoring(model, device, profile, precision)
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    return pipe


def _say(line: str) -> None:
    typer.echo(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}", err=True)


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks for the end, the second one has its usual effect."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    for number in former:
        signal.signal(number, lambda *_: (stop(), restore()))
    try:
        yield
    finally:
        restore()
