"""The package itself: its public names, and that nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import diffad
import pytest
from diffad.cli import app
from typer.main import get_command

HEAVY = ("torch", "diffusers", "transformers", "sklearn", "scipy", "matplotlib", "pyarrow")


def modules_after(code: str) -> set[str]:
    """Names of the modules that a new interpreter has imported after the code."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines())


def test_help_takes_no_heavy_imports():
    lines = [["--help"], *([command, "--help"] for command in get_command(app).commands)]
    modules = modules_after(f"from diffad.cli import app\nfor words in {lines}:\n    app(words, standalone_mode=False)")
    assert "diffad.cli" in modules and not modules & set(HEAVY)


def test_public_names_are_imported_when_asked_for():
    assert "torch" not in modules_after("import diffad; dir(diffad); diffad.__version__")
    modules = modules_after("from diffad import ImageError")
    assert "diffad.imaging.reading" in modules and not modules & set(HEAVY)
    assert set(diffad.__all__) < set(dir(diffad)) and "__version__" in dir(diffad)
    for name in diffad.__all__:
        assert getattr(diffad, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'diffad' has no attribute 'nothing'"):
        diffad.nothing  # noqa: B018
    with pytest.raises(ImportError):
        from diffad import nothing  # noqa: F401


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(diffad.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname: ("." * node.level) + node.module for node in block.body for alias in node.names}
    assert seen == diffad._SOURCES
