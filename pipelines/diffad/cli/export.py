"""diffad export"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Profile

if TYPE_CHECKING:
    from ..data import Sample
    from ..pipeline_diffad import DiffADPipeline

LEAST_AGREEMENT = 0.99  # of verdicts in 8 bits with those in float32
COMPARED = 100  # good images, and as many with synthetic defects


def export(
    model: Annotated[str, typer.Argument(help="Folder of a trained model, or its name on the Hub.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    format: Annotated[str, typer.Option(help="onnx runs on any CPU; openvino is faster on Intel's.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="int8 computes diffusion models in 8 bits; OpenVINO computes fp32 graphs in bf16, too.")
    ] = "fp32",
    profile: Profile = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Good images that the model was not trained on, for thresholds in bf16 and int8. Without it the held-out "
            "images, if the training data is where it was.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Of the runtime that sets the thresholds of bf16 and int8: cpu, or another that it knows.")
    ] = "cpu",
    term_maps: Annotated[bool, typer.Option("--term-maps", help="The graph returns the maps of all terms, too.")] = False,
) -> None:
    """Write a model as one graph with the code that runs it, for machines without torch.

    The folder is complete: graph, detector.json (sizes, thresholds), detector.py and requirements.txt. Thresholds belong to a
    precision: those of fp32 are the model's; for bf16 and int8 good images are scored in that precision.

    Examples:

    ```
    diffad export runs/part exported
    diffad export runs/part exported-openvino --format openvino
    diffad export runs/part exported-int8 --format openvino --precision int8 --images new/good
    ```
    """
    from diffad_training.good_images import group_names

    from ..export.calibration import calibrate_exported
    from ..export.folder import export_pipeline
    from .loading import load_model

    if precision not in ("fp32", "int8"):
        raise ValueError(f"--precision must be fp32 or int8, got {precision}; OpenVINO computes fp32 graphs in bf16, too")
    is_int8 = precision == "int8"
    samples = _good_samples(model, images)
    good = [sample.read for sample in samples]
    if is_int8 and not good:
        raise ValueError(
            f"{model}: --precision int8 needs good images, and the training data is not where it was; name some with --images"
        )
    pipe = load_model(model, "cpu", profile)
    description = export_pipeline(pipe, folder, format, term_maps, good if is_int8 else None)
    typer.echo(f"wrote {folder}: {description.graph} for {description.runtime}")
    for one in description.precisions:
        if one in description.calibrations:
            continue
        if good:
            # Of images in a folder the categories are recognised.
            categories = [sample.category for sample in samples] if pipe.category_names and images is None else None
            calibrate_exported(folder, good, one, categories, group_names(samples), device=device)
            typer.echo(f"calibrated in {one} on {len(good)} good images")
        else:
            typer.echo(f"not calibrated in {one}; run: diffad calibrate {folder} GOOD_IMAGES --precision {one}")
    if is_int8:
        _refuse_other_verdicts(pipe, folder, samples)


def _refuse_other_verdicts(pipe: "DiffADPipeline", folder: Path, samples: list["Sample"]) -> None:
    """Removes an export in 8 bits whose verdicts are not the pipeline's, on good images and ones with synthetic defects.

    Raises:
        ValueError: saying how many differ.
    """
    import shutil

    from diffad_training.likely_defects import likely_defects, shrunk

    from ..runtime import Detector

    good = [shrunk(sample.read()) for sample in samples[:COMPARED]]
    images = [*good, *(defective for defective, *_ in likely_defects(good, COMPARED, seed=0))]
    differ = int((pipe(images).is_defective != Detector(folder)(images).is_defective).sum())
    typer.echo(f"{differ} of {len(images)} verdicts differ from those in fp32")
    if differ > (1 - LEAST_AGREEMENT) * len(images):
        shutil.rmtree(folder)
        raise ValueError(f"int8 would change {differ} of {len(images)} verdicts; {folder} was removed, export in fp32 instead")


def _good_samples(model: str, folder: Path | None) -> list["Sample"]:
    """Good images for thresholds: those of a folder, or without one the held-out images behind the model's own thresholds."""
    from diffad_training.fitting import threshold_samples
    from diffad_training.good_images import images_trained_on

    from ..data import DataError, Sample
    from ..imaging.reading import read_image
    from ..jobs.recalibrate import calibration_images

    if folder is not None:
        paths = calibration_images(folder, trained_on=images_trained_on(Path(model)))
        return [Sample(str(path), partial(read_image, path)) for path in paths]
    try:
        return threshold_samples(Path(model))
    except DataError:
        return []
