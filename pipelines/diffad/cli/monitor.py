"""diffad monitor"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AllGood, BatchSize, Category, Device, ExportedPrecision, FalseAlarmRate, Feedback, Profile

if TYPE_CHECKING:
    from ..monitoring.summary import MonitorSummary

CHANGED = 3  # exit code


def monitor(
    model: Annotated[str, typer.Argument(help="Folder of a trained or exported model, or its name on the Hub.")],
    folder: Annotated[Path | None, typer.Argument(help="Images of production, which are scored, the oldest first.")] = None,
    state: Annotated[
        Path,
        typer.Option("--state", "-s", help="JSON file that keeps what was seen; the first run makes it."),
    ] = Path("monitor.json"),
    results: Annotated[
        list[Path] | None, typer.Option(help="Table that `diffad predict` wrote with MODEL; may be given several times.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Good images to compare with, taken like those of production: at least 20, better 100."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Page to write (.html), or the same as data (.json).")] = None,
    level: Annotated[float, typer.Option(help="Probability that unchanged production ever raises an alarm.")] = 0.05,
    defect_rate: Annotated[float, typer.Option(help="Share of truly defective parts that is normal.")] = 0.0,
    false_alarm_rate: FalseAlarmRate = None,
    feedback: Feedback = None,
    category: Category = None,
    all_good: AllGood = False,
    profile: Profile = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    precision: ExportedPrecision = None,
) -> None:
    """Say whether production has left the distribution that a model was calibrated on.

    Give tables of predictions, a folder of images, or both. Each part is taken once: run the command again when there are new
    ones. Up to four tests share the level: scores of parts called good, the reject rate, embeddings (of a folder of images with
    --reference), and parts that the operator calls wrongly rejected (with --feedback). An alarm stays; once its cause is mended
    or the model is calibrated anew, begin a new state.

    Exit codes: 0 production is as before, 3 it has changed, 1 an error, 2 a wrong option.

    Examples:

    ```
    diffad monitor runs/part --results results.csv --state monitor.json
    diffad monitor runs/part new --reference good --state monitor.json --report monitor.html
    ```
    """
    from ..jobs.monitor import MonitorSettings
    from ..jobs.monitor import monitor as run_monitor
    from ..jobs.monitor_summary import summarize
    from .loading import load_scoring

    if folder is None and not results:
        raise ValueError("nothing to monitor: give a folder of images, or tables with --results")
    if report is not None:
        _check_report(report)
    pipe = load_scoring(model, device, profile, precision)
    settings = MonitorSettings(level, false_alarm_rate, defect_rate, category, reference, all_good, feedback)
    summary = summarize(run_monitor(pipe, state, settings, results or (), folder, batch_size))
    typer.echo(f"{summary.verdict}: {summary.parts} parts, {summary.rejected} of them called defective")
    for line in summary.lines:
        typer.echo(f"  {line}")
    if report is not None:
        _write_report(summary, report)
        typer.echo(f"wrote {report}")
    if summary.changed:
        raise typer.Exit(CHANGED)


def _check_report(path: Path) -> None:
    if path.suffix.lower() == ".html":
        from ..evaluation.report import check_report_path

        check_report_path(path)
    elif path.suffix.lower() != ".json":
        raise ValueError(f"{path}: a report's name must end in .html or .json")
    elif not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")


def _write_report(summary: "MonitorSummary", path: Path) -> None:
    if path.suffix.lower() == ".json":
        from ..system.atomic import write_text

        write_text(path, json.dumps(summary.as_json(), indent=1) + "\n")
    else:  # draws with matplotlib
        from ..evaluation.report.monitoring import write_monitor_report

        write_monitor_report(summary, path)
