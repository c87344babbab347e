"""Options that several commands share."""

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder of a trained model, or its name on the Hub.", show_default=False)
]
BatchSize = Annotated[
    int, typer.Option(help="Images per forward pass; more need more memory. Scores change by rounding only.", min=1)
]
FalseAlarmRate = Annotated[
    float | None,
    typer.Option(
        help="Share of good parts that may be called defective; sets the thresholds. Without it 0.05, or the smallest rate "
        "that the model's held-out good images can guarantee.",
        show_default=False,
    ),
]
Category = Annotated[
    str | None,
    typer.Option(
        help="Category of all images, for a model of several categories. Without it each image's is recognised.",
        show_default=False,
    ),
]
