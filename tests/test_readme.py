"""Every command of the README exists and takes the options it is shown with."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from diffad.cli import app

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("diffad ")])
def test_diffad_commands_parse(line):
    _, command, *arguments = shlex.split(line)
    normalize = app.info.context_settings["token_normalize_func"]
    COMMANDS[command].make_context(command, arguments, token_normalize_func=normalize)


def test_every_command_is_described():
    described = set(re.findall(r"^\| `diffad (\w+)", README.read_text(), re.MULTILINE))
    assert described == set(COMMANDS)


def test_scripts_and_pictures_exist():
    text = README.read_text()
    for path in re.findall(r"(?:training|model_cards)/[\w/]+\.(?:py|png)", text):
        assert (README.parent / path).is_file(), path
