"""diffad evaluate"""

from pathlib import Path
from typing import Annotated

import typer

from .options import Address, BatchSize, Category, Device, Engine, FalseAlarmRate, Model, Profile, Workers


def evaluate(
    folder: Annotated[str, typer.Argument(help="Test images: test/good, test/<defect>, and masks in ground_truth/<defect>.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("runs/evaluation"),
    false_alarm_rate: FalseAlarmRate = None,
    category: Category = None,
    profile: Profile = None,
    map_size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Size at which maps and masks are compared. Without it 256x256, or, for a model of tiles, the size at which "
            "it scores images, as far as memory allows.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[bool, typer.Option(help="Write report.html; repairing images for it takes a few seconds each.")] = True,
    batch_size: BatchSize = 8,
    device: Device = None,
    engine: Engine = "process",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Measure a model on test images of which it is known whether they are good.

    Writes report.html (open it first), metrics.json, metrics.md, scores.csv and sheet.png (input, truth, heat map, overlay).

    Examples:

    ```
    diffad evaluate parts --model runs/part --output runs/part-evaluation
    diffad evaluate parts --model runs/part --false-alarm-rate 0.01
    diffad evaluate parts --model runs/part --engine ray --workers 2
    ```
    """
    from ..evaluation.evaluate import evaluate_model
    from ..evaluation.outputs import metrics_table
    from ..evaluation.scored_samples import score_samples
    from .engine import cluster_of, worker_model
    from .loading import load_model

    cluster = cluster_of(engine, address, workers, device)
    score = score_samples
    if cluster is not None:
        from ..cluster.evaluation import score_by_workers

        score = score_by_workers(cluster, worker_model(model, profile), folder)
    size = None if map_size is None else parse_size(map_size)
    results = evaluate_model(
        load_model(model, device, profile),
        folder,
        output,
        batch_size=batch_size,
        false_alarm_rate=false_alarm_rate,
        category=category,
        map_size=size,
        report=report,
        score=score,
    )
    typer.echo(metrics_table(results))
    for name in ("metrics.json", "metrics.md", "scores.csv", "sheet.png") + ("report.html",) * report:
        typer.echo(f"wrote {output / name}")


def parse_size(text: str) -> tuple[int, int]:
    """`HEIGHTxWIDTH` in pixels as `(height, width)`.

    Raises:
        ValueError: if it is anything else.
    """
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise ValueError(f"--map-size {text}: expected HEIGHTxWIDTH in pixels, such as 512x768")
    return int(sides[0]), int(sides[1])
