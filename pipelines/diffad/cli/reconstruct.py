"""diffad reconstruct"""

from pathlib import Path
from typing import Annotated

import typer

from .options import BatchSize, Category, Device, FalseAlarmRate, Model


def reconstruct(
    folder: Annotated[Path, typer.Argument(help="Images to repair; folders in it are searched, too.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the subfolders `repaired` and `difference`.")],
    preset: Annotated[
        str,
        typer.Option(
            help="default (marked regions only), mean (the same with less error and less detail), paper (Algorithm 1 as "
            "released), algorithm_1 (as printed), gradient_descent or partial_diffusion."
        ),
    ] = "default",
    false_alarm_rate: FalseAlarmRate = None,
    category: Category = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Also write the way there: frames in a row, and animated.")
    ] = False,
    batch_size: BatchSize = 8,
    device: Device = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if an image could not be read.")] = False,
) -> None:
    """Show what the parts should have looked like: repaired images, and maps of what was changed.

    Examples:

    ```
    diffad reconstruct new --model runs/part --output repaired
    diffad reconstruct new --model runs/part --output repaired --trajectory
    diffad reconstruct new --model runs/part --output repaired --preset paper
    ```
    """
    from ..jobs.repair_folder import repair_folder
    from .loading import load_model

    pipe = load_model(model, device)
    summary = repair_folder(pipe, folder, output, preset, false_alarm_rate, seed, batch_size, category, trajectory=trajectory)
    typer.echo(f"wrote {output}: {summary.images - len(summary.errors)} images, {summary.changed} of them changed")
    if summary.not_confident:
        typer.echo(f"what these should have looked like could not be told: {', '.join(summary.not_confident)}")
    if summary.errors:
        typer.echo(f"unreadable images: {len(summary.errors)}", err=True)
        for message in summary.errors:
            typer.echo(f"  {message}", err=True)
        raise typer.Exit(1 if strict else 0)
