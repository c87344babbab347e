"""Options that several commands share, and how former names of options are taken."""

from pathlib import Path
from typing import Annotated

import typer

from ..deprecation import LAST_RELEASE

FORMER_NAMES = {"class-label": "category", "film": "trajectory"}  # of options; diffad train has more

Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder of a trained model, or its name on the Hub.", show_default=False)
]
BatchSize = Annotated[
    int, typer.Option(help="Images per forward pass; more need more memory. Scores change by rounding only.", min=1)
]
FalseAlarmRate = Annotated[
    float | None,
    typer.Option(
        help="Share of good parts that may be called defective; sets the thresholds. Without it 0.05, or the smallest rate "
        "that the model's held-out good images can guarantee.",
        show_default=False,
    ),
]
Category = Annotated[
    str | None,
    typer.Option(
        help="Category of all images, for a model of several categories. Without it each image's is recognised.",
        show_default=False,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        help="How to score: fast, balanced, best, or gaussian (without the diffusion model), as far as the model has it (see "
        "`diffad info`). Without it balanced.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...; without it cuda where there is one.", show_default=False)
]
ExportedPrecision = Annotated[
    str | None,
    typer.Option(help="Of an exported model: fp32, bf16 or int8; without it that of its graph.", show_default=False),
]
Engine = Annotated[
    str, typer.Option(help="What computes: process (this one), or ray (workers of one thread each, on one or more machines).")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Of a running Ray cluster that this machine is part of: auto, or HOST:PORT. Without it Ray runs on this machine "
        "for this job.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Workers of --engine ray; without it one for each CPU.", min=1, show_default=False)
]
Feedback = Annotated[
    Path | None,
    typer.Option(help="List of the operator's words, as serve, the app and reports write it (JSON lines).", show_default=False),
]
AllGood = Annotated[
    bool, typer.Option("--all-good", help="All images of a folder are good, though they lie in several subfolders.")
]


def present_name(name: str) -> str:
    """The name of an option as commands know it: settings have underscores in files and scripts, and some had another name."""
    name = name.replace("_", "-")
    if name not in FORMER_NAMES:
        return name
    present = FORMER_NAMES[name]
    typer.echo(f"--{name} is now called --{present}; the former name goes after diffad {LAST_RELEASE}", err=True)
    return present
