"""diffad tune"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AllGood, BatchSize, Device

if TYPE_CHECKING:
    from ..evaluation.tuning import ScoreChoice


def tune(
    model: Annotated[str, typer.Argument(help="Folder of a trained model, or its name on the Hub.")],
    defects: Annotated[Path, typer.Argument(help="Images of defective parts, 3 at least.")],
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a mask for each of them, named like its image or with _mask. More is learnt with masks."
        ),
    ] = None,
    good: Annotated[
        Path | None,
        typer.Option(
            help="Images of good parts that the model was not trained on. Without it the images that training held out, from "
            "where they were."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the tuned model; without it MODEL is changed.")
    ] = None,
    all_good: AllGood = False,
    batch_size: BatchSize = 8,
    device: Device = None,
) -> None:
    """Choose a model's score by a few known defects.

    Terms of the anomaly map and of the verdict, their weights and pooling change only as far as defects that did not choose
    them are found better by more than chance; otherwise the model stays as it is. Thresholds come from good images, as before.

    Examples:

    ```
    diffad tune runs/part known/defects --masks known/masks
    diffad tune runs/part known/defects --good new/good --output runs/part-tuned
    ```
    """
    from diffad_training.good_images import group_names, held_out_samples, images_trained_on

    from ..evaluation.measured_terms import GoodImages
    from ..jobs.recalibrate import calibration_entry, calibration_images, save_calibration
    from ..jobs.tune import defect_samples, tune
    from .loading import check_model, is_model, load_model

    check_model(model)
    if not is_model(Path(model)) and (output is None or good is None):
        raise ValueError(
            f"{model}: is on the Hub; name good images with --good, and a folder for the tuned model with --output"
        )
    known = defect_samples(defects, masks)
    if good is not None:
        paths = calibration_images(good, all_good, images_trained_on(Path(model), good))
        images = GoodImages(paths)
    else:
        try:
            samples = held_out_samples(Path(model))
        except ValueError as error:
            raise ValueError(f"{error}; or name good images that the model was not trained on with --good") from None
    pipe = load_model(model, device)
    if good is None:
        categories = [sample.category for sample in samples] if pipe.category_names else None
        images = GoodImages([sample.read for sample in samples], categories, group_names(samples))
    before = pipe.digest
    tuning = tune(pipe, images, known, batch_size)
    if output is not None:
        pipe.save_pretrained(output)
    elif tuning.is_changed:
        save_calibration(pipe, Path(model), None if good is None else calibration_entry(before, pipe, good, paths))
    typer.echo(f"{tuning.defects} defective and {tuning.good_images} good images chose")
    typer.echo(f"anomaly map: {_described(tuning.anomaly_map, 'AP and AUPRO' if tuning.has_masks else 'separation')}")
    typer.echo(f"verdict: {_described(tuning.verdict, 'separation', with_area=True)}")
    if tuning.is_changed:
        typer.echo(f"{output or model}: calibrated on {len(images.images)} good images")
    else:
        typer.echo(f"{model}: stays as it is")


def _described(choice: "ScoreChoice", measure: str, with_area: bool = False) -> str:
    gain = f"{choice.gain:+.1%} +- {choice.standard_error:.1%} from {choice.before:.1%} of {measure}, cross-validated"
    if not choice.is_changed:
        return f"unchanged; others bring {gain}"
    chosen = " + ".join(term if weight == 1 else f"{weight:.3g} {term}" for term, weight in choice.chosen.weights.items())
    return f"{chosen}{f', the highest {choice.chosen.area:.1%} of the pixels' * with_area}; {gain}"
