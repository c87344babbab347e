"""diffad calibrate"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AllGood, BatchSize, Device, ExportedPrecision, FalseAlarmRate, Feedback

if TYPE_CHECKING:
    from ..scoring.judging import Judging


def calibrate(
    model: Annotated[str, typer.Argument(help="Folder of a trained model, or its name on the Hub.")],
    good_folder: Annotated[Path, typer.Argument(help="Images of good parts that the model was not trained on.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the calibrated model; without it MODEL is changed.")
    ] = None,
    false_alarm_rate: FalseAlarmRate = None,
    roi: Annotated[
        Path | None,
        typer.Option(
            help="Mask image of the region of interest, white inside, in the images' framing: nothing counts outside. "
            "Without it MODEL keeps its own; an all-white one removes it.",
            show_default=False,
        ),
    ] = None,
    feedback: Feedback = None,
    all_good: AllGood = False,
    batch_size: BatchSize = 8,
    device: Device = None,
    precision: ExportedPrecision = None,
) -> None:
    """Set a model's thresholds anew from good images, for example after a change of the lighting.

    Images that the model was trained on are left out: of its training data, the held-out ones are used. Nothing is saved if
    there are too few images for the false-alarm rate. A model of several categories needs images of each, and recognises
    which is which. Of an exported model the thresholds of one precision are set.

    The images must be drawn at random from good parts, whether or not the model rejects them. With --feedback those that are
    defective by the operator's word are left out, and images most of which were chosen as wrongly rejected are refused.

    Examples:

    ```
    diffad calibrate runs/part new/good
    diffad calibrate runs/part new/good --output runs/part-new-light --false-alarm-rate 0.01
    diffad calibrate runs/part new/good --roi region.png
    diffad calibrate runs/part new/good --feedback feedback.jsonl
    diffad calibrate exported new/good --precision bf16
    ```
    """
    from diffad_training.good_images import images_trained_on

    from ..jobs.recalibrate import calibrate_on, calibration_entry, calibration_images, save_calibration
    from ..scoring.conformal import check_supported, images_behind_thresholds
    from .loading import check_model, is_exported, is_model, load_model

    if is_exported(Path(model)):
        for option, value in (("--output", output), ("--roi", roi)):
            if value is not None:
                raise ValueError(f"{option}: an exported model is calibrated where it lies, in its own region; export it anew")
        images = _without_defective(calibration_images(good_folder, all_good), feedback, good_folder)
        _calibrate_exported(Path(model), images, false_alarm_rate, batch_size, device, precision)
        return
    check_model(model)
    if output is None and not is_model(Path(model)):
        raise ValueError(f"{model}: is on the Hub; give a folder for the calibrated model with --output")
    images = calibration_images(good_folder, all_good, images_trained_on(Path(model), good_folder))
    images = _without_defective(images, feedback, good_folder)
    pipe = load_model(model, device)
    before = pipe.digest
    if false_alarm_rate is not None:  # known before the images are measured
        behind_thresholds = images_behind_thresholds(len(images), pipe.calibration.config.statistics_share)
        check_supported(behind_thresholds, false_alarm_rate)
    calibration = calibrate_on(pipe, images, batch_size, roi)
    rates = calibration.supported_rates(false_alarm_rate)
    if output is None:
        save_calibration(pipe, Path(model), calibration_entry(before, pipe, good_folder, images))
    else:
        pipe.save_pretrained(output)
    typer.echo(f"{output or model}: calibrated on {len(images)} good images")
    show_thresholds(calibration, pipe.category_names, rates)


def _calibrate_exported(
    model: Path,
    images: Sequence[Path],
    false_alarm_rate: float | None,
    batch_size: int,
    device: str | None,
    precision: str | None,
) -> None:
    from ..export.calibration import calibrate_exported
    from ..runtime.description import DetectorDescription
    from ..scoring.conformal import check_supported

    if false_alarm_rate is not None:
        check_supported(len(images), false_alarm_rate)
    calibration = calibrate_exported(model, images, precision, batch_size=batch_size, device=device or "cpu")
    description = DetectorDescription.read(model)
    typer.echo(f"{model}: calibrated in {precision or description.weights} on {len(images)} good images")
    show_thresholds(calibration, description.category_names, calibration.supported_rates(false_alarm_rate))


def _without_defective(images: Sequence[Path], feedback: Path | None, folder: Path) -> Sequence[Path]:
    from ..jobs.recalibrate import without_defective
    from ..monitoring.feedback_list import read_feedback

    if feedback is None:
        return images
    kept = without_defective(images, read_feedback(feedback), folder)
    typer.echo(f"{folder}: {len(images) - len(kept)} of {len(images)} images are defective by the feedback and left out")
    return kept


def show_thresholds(calibration: "Judging", names: Sequence[str] | None, rates: Mapping[int, float]) -> None:
    """Prints thresholds at the false-alarm rate of each category."""
    for category, rate in rates.items():
        image, pixel = calibration.image_threshold(rate, category), calibration.pixel_threshold(rate, category)
        of_category = f"{names[category]}: " if names else ""
        typer.echo(f"{of_category}thresholds at a false-alarm rate of {rate:.1%}: {image:.4g} (image), {pixel:.4g} (pixel)")
