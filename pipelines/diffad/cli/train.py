"""diffad train"""

import inspect
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from diffad_training.config import FORMER_NAMES, load_config, option_names, spell_out_switches
from diffad_training.conversion import SettingsError
from typer.core import TyperCommand

from .options import Device

ACCELERATE_DEVICE = "ACCELERATE_TORCH_DEVICE"  # environment variable


def _with_training_settings(command):
    """Gives a command with `**settings` an option for every training setting that it has no argument of its own for."""
    parameters = list(inspect.signature(command).parameters.values())[:-1]
    option = typer.Option(rich_help_panel="Training settings, explained in training/config.py")
    former = typer.Option(hidden=True)
    for name in option_names():
        if name not in ("data", "output_dir", "seed"):
            annotation = Annotated[str | None, former if name in FORMER_NAMES else option]
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)
    return command


class TrainCommand(TyperCommand):
    """Takes `--all-good` alone for `--all-good true`, as train.py does."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spell_out_switches(args))


@_with_training_settings
def train(
    folder: Annotated[str, typer.Argument(help="Good images: a folder, a folder with train/good, or a dataset's name.")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder for the trained model [runs/model].")] = None,
    config: Annotated[str, typer.Option(help="Preset (cpu-small, paper) or YAML file of settings.")] = "cpu-small",
    seed: Annotated[str | None, typer.Option(metavar="<int>", help="Decides all random choices [0].")] = None,
    device: Device = None,
    **settings: str | None,
) -> None:
    """Train a model on images of good parts.

    Some of the images are held out: thresholds come from these.

    Examples:

    ```
    diffad train parts/good --output runs/part
    diffad train parts/good --output runs/part --max-train-steps 4000 --augmentations "[hflip]"
    diffad train parts/good --output runs/part --resume-from-checkpoint latest
    diffad train parts --all-good --roi roi.png --output runs/part
    diffad train parts/good --output runs/part --config paper --pretrained-unet checkpoint
    ```
    """
    options = {"data": folder, "output_dir": output, "seed": seed, **settings}
    try:
        training_config = load_config(config, options)
    except SettingsError as error:
        if not (Path(config).is_file() and str(error).startswith(f"{config}: ")):
            raise
        typer.echo(f"error: {error}", err=True)  # a file that holds no settings is wrong usage, as for train.py
        raise typer.Exit(2) from None

    import torch
    from diffad_training.train import main

    from .loading import check_device

    if device is not None:
        check_device(device)
    elif torch.cuda.device_count() > 1:
        typer.echo(f"note: one of {torch.cuda.device_count()} GPUs is used. For all of them:", err=True)
        typer.echo(f"  {launch_command(config, options)}", err=True)
    with _training_on(device):
        main(training_config)


def launch_command(config: str, options: dict[str, str | None]) -> str:
    """The same training on all GPUs."""
    words = ["accelerate", "launch", "--multi_gpu", "-m", "diffad_training.train", "--config", config]
    for name, text in options.items():
        if text is not None:
            words += [f"--{name}", text]
    return shlex.join(words)


@contextmanager
def _training_on(device: str | None) -> Iterator[None]:
    """Makes accelerate, which chooses the device of a training, take one; None leaves it the choice."""
    if device is None:
        yield
        return
    former = os.environ.get(ACCELERATE_DEVICE)
    os.environ[ACCELERATE_DEVICE] = device
    try:
        yield
    finally:
        del os.environ[ACCELERATE_DEVICE]
        if former is not None:
            os.environ[ACCELERATE_DEVICE] = former
