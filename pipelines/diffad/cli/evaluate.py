"""diffad evaluate"""

from pathlib import Path
from typing import Annotated

import typer

from .options import BatchSize, Category, FalseAlarmRate, Model


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Test images: test/good, test/<defect>, and masks in ground_truth/<defect>.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("runs/evaluation"),
    false_alarm_rate: FalseAlarmRate = None,
    category: Category = None,
    map_size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Size at which maps and masks are compared. Without it 256x256, or, for a model of tiles, the size at which "
            "it scores images, as far as memory allows.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 8,
) -> None:
    """Measure a model on test images of which it is known whether they are good.

    Writes report.html (open it first), metrics.json, metrics.md, scores.csv and sheet.png (input, truth, heat map, overlay).

    Examples:

    ```
    diffad evaluate parts --model runs/part --output runs/part-evaluation
    diffad evaluate parts --model runs/part --false-alarm-rate 0.01
    ```
    """
    from diffad.evaluation.evaluate import main

    from .loading import check_model

    check_model(model)
    arguments = {"model": model, "data": folder, "output_dir": output, "batch_size": batch_size}
    if false_alarm_rate is not None:
        arguments["false_alarm_rate"] = false_alarm_rate
    if category is not None:
        arguments["category"] = category
    if map_size is not None:
        arguments["map_size"] = map_size
    main([f"--{name}={value}" for name, value in arguments.items()])
