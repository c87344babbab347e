"""diffad info"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from .options import AllGood, Device


def info(
    path: Annotated[str, typer.Argument(help="Folder of a trained or exported model, or data to train on or to test with.")],
    all_good: AllGood = False,
    device: Device = None,
) -> None:
    """Say what a trained model is, or what is recognised in a folder of data.

    Examples:

    ```
    diffad info runs/part
    diffad info parts
    ```
    """
    from .. import data
    from ..jobs import history
    from ..jobs.model_summary import is_unfinished, map_choice, summarize_exported, summarize_model
    from .loading import is_exported, is_model, load_model

    if is_exported(Path(path)):
        _show(summarize_exported(Path(path)))
        return
    if not is_model(Path(path)):
        typer.echo(data.describe(path, all_good=all_good))
        return
    summary = summarize_model(load_model(path, device))
    if is_unfinished(Path(path)):
        summary = {"training": "unfinished; until then this first model scores by the profile gaussian"} | summary
    if chosen := map_choice(Path(path)):
        summary["map chosen"] = chosen
    _show(summary | history.summary(history.read_history(Path(path))))


def _show(summary: Mapping[str, str]) -> None:
    for heading, text in summary.items():
        typer.echo(f"{heading + ':':<20} {text}")
