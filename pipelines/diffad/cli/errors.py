"""What a user can get wrong is said in one line; anything else keeps its traceback."""

import io
import sys

import typer
from typer.core import TyperGroup

# DataError and ImageError are ValueErrors; OSError is a missing file, a full disk, a Hub that can't be reached.
EXPECTED = (ValueError, OSError)


class OneLineErrors(TyperGroup):
    """Runs a command and turns its expected errors into `error: ...` on stderr and exit code 1."""

    def invoke(self, ctx: typer.Context) -> object:
        if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that are not text end no run, as on stderr
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        except ModuleNotFoundError as error:
            typer.echo(f"error: this needs the Python package {error.name}, which is not installed", err=True)
        raise typer.Exit(1)
