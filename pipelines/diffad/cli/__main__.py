"""`python -m diffad.cli` is `diffad`."""

from . import app

app(prog_name="diffad")
