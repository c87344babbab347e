"""The `diffad` command, one file per command, on top of the package and of training and without logic of its own."""

import typer

from .calibrate import calibrate
from .errors import OneLineErrors
from .evaluate import evaluate
from .info import info
from .predict import predict
from .push import push
from .reconstruct import reconstruct
from .train import TrainCommand, train
from .web_app import serve_app

app = typer.Typer(
    name="diffad",
    cls=OneLineErrors,
    help="Visual anomaly detection, localization and repair: train on good images, find what is defective.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    # --batch_size is --batch-size: settings have underscores in files and scripts.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)

app.command(cls=TrainCommand)(train)
for command in (evaluate, predict, reconstruct, calibrate, info, push):
    app.command()(command)
app.command("app")(serve_app)
