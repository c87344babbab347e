"""Running the diffad command within the test's process."""

from pathlib import Path

from diffad.cli import app
from PIL import Image
from typer.testing import CliRunner


def run(*arguments):
    """Result of a command line, with `exit_code`, `stdout`, `stderr` and `exception`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def save_images(folder: Path, images: list[Image.Image]) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i:02d}.png")
    return folder
