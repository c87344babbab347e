"""`python -m diffad.cli` is `diffad`."""

from . import app

if __name__ == "__main__":  # processes that a command starts import it under another name
    app(prog_name="diffad")
