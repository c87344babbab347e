"""The `diffad` command, one file per command under its name, on top of the package and without logic of its own."""

from typing import Annotated

import typer

from .. import __version__
from .audit import audit
from .calibrate import calibrate
from .errors import OneLineErrors
from .evaluate import evaluate
from .export import export
from .info import info
from .monitor import monitor
from .options import present_name
from .predict import predict
from .push import push
from .reconstruct import reconstruct
from .serve import serve
from .train import TrainCommand, train
from .tune import tune
from .update import update
from .watch import watch
from .web_app import serve_app

app = typer.Typer(
    name="diffad",
    cls=OneLineErrors,
    help="Visual anomaly detection, localization and repair: train on good images, find what is defective.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"token_normalize_func": present_name},
)


def _show_version(is_asked_for: bool) -> None:
    if is_asked_for:
        typer.echo(f"diffad {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command(cls=TrainCommand)(train)
for command in (audit, evaluate, predict, watch, monitor, reconstruct, calibrate, update, tune, export, serve, info, push):
    app.command()(command)
app.command("app")(serve_app)
