"""diffad update"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AllGood, BatchSize, Device, Feedback

if TYPE_CHECKING:
    from ..pipeline_diffad import DiffADPipeline


def update(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model, with its moments.safetensors.")],
    good_folder: Annotated[
        Path,
        typer.Argument(
            help="Good parts drawn at random from production, whatever the model says of them. For a model of several "
            "categories with a subfolder for each."
        ),
    ],
    feedback: Feedback = None,
    rejected: Annotated[
        Path | None,
        typer.Option(help="Folder with wrongly rejected parts of the feedback, to fit and never to calibrate on."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the training data lies now, for its held-out images; without it where it was.")
    ] = None,
    calibrate_on_new: Annotated[
        bool, typer.Option("--calibrate-on-new", help="Take thresholds from the new held-out images alone.")
    ] = False,
    accept_change: Annotated[
        bool,
        typer.Option(
            "--accept-change",
            help="Take good parts of this product though production has changed; implies --calibrate-on-new.",
        ),
    ] = False,
    all_good: AllGood = False,
    batch_size: BatchSize = 8,
    device: Device = None,
) -> None:
    """Take new good images into a model without training it anew.

    Training leaves moments beside a model; with them the Gaussians become those of all images, old and new. Networks stay as
    they are. The rule of training divides the new images: some are held out, and with those held out before set the
    thresholds anew. Images that the model has seen are passed over. Images that are not of the production that the model was
    calibrated on are refused.

    Examples:

    ```
    diffad update runs/part new/good
    diffad update runs/part new/good --feedback feedback.jsonl --rejected new/rejected
    diffad update runs/part new/good --accept-change
    ```
    """
    from diffad_training.update import UpdateSettings
    from diffad_training.update import update as update_model

    from .calibrate import show_thresholds
    from .loading import check_model, load_model

    check_model(str(model))
    settings = UpdateSettings(feedback, rejected, data, calibrate_on_new, accept_change, all_good, batch_size)
    pipe, entry = update_model(model, good_folder, settings, partial(load_model, device=device))
    typer.echo(f"{model}: updated")
    for what, count in entry.counts.items():
        typer.echo(f"  {count} {what}")
    typer.echo(f"  as they were: {', '.join(_unchanged(pipe))}")
    show_thresholds(pipe.calibration, pipe.category_names, pipe.calibration.supported_rates(None))


def _unchanged(pipe: "DiffADPipeline") -> list[str]:
    """Parts that an update does not change."""
    parts = ["what standardises features"]
    if pipe.residual_gaussian is not None:
        parts += ["the UNet", "the choice of the map"]
    if pipe.feature_denoiser is not None:
        parts.append("the feature denoiser's network")
    if "neighbors" in pipe.scales:
        parts.append("the good images of the scale neighbors (profile best)")
    if pipe.references is not None:
        parts.append("the reference images of repair")
    return parts
