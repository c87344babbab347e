"""The `diffad` command. It stands on top of the package and of training, and holds no logic of its own: one file per command."""

import typer

from .web_app import serve_app

app = typer.Typer(
    name="diffad",
    help="Visual anomaly detection, localization and repair: train on good images, find what is defective.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def main() -> None:
    pass


app.command("app")(serve_app)
