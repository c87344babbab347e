"""diffad predict"""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Address,
    BatchSize,
    Category,
    Device,
    Engine,
    ExportedPrecision,
    FalseAlarmRate,
    Model,
    Profile,
    Workers,
)


def predict(
    folder: Annotated[
        str, typer.Argument(help="Images to judge, in folders of any depth; one image file; or s3://BUCKET/FOLDER.")
    ],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to write: .csv, .jsonl or .parquet.")],
    false_alarm_rate: FalseAlarmRate = None,
    category: Category = None,
    profile: Profile = None,
    maps: Annotated[Path | None, typer.Option(help="Folder for anomaly maps (32-bit TIFF).")] = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for images with the heat map laid over (PNG).")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder for masks of the defective pixels (PNG).")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write, with a gallery of the highest scores.")] = None,
    batch_size: BatchSize = 8,
    device: Device = None,
    precision: ExportedPrecision = None,
    engine: Engine = "process",
    address: Address = None,
    workers: Workers = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if an image could not be read.")] = False,
) -> None:
    """Score all images of a folder and write a table with one row per image.

    Columns: path (in FOLDER), score, p_value, label (good, defective, or unknown: of a product that the model has never seen),
    defect_pixels, defect_share (of the image), defects (connected regions), boxes ([left, top, right, bottom] of each in
    pixels, the largest region first), category (of a model of several), false_alarm_rate, error, image_threshold and
    pixel_threshold (an image and pixels above them are defective).

    A run that was stopped goes on where it was when the same command is given again. A finished one is not scored again: the
    same command with --report makes the report of its table.

    Examples:

    ```
    diffad predict new --model runs/part --output results.csv --report report.html
    diffad predict new --model runs/part --output results.parquet --overlays overlays --masks masks
    diffad predict new --model runs/part --output results.jsonl --false-alarm-rate 0.01 --strict
    diffad predict s3://parts/new --model part-onnx --output results.parquet --engine ray --address auto
    ```
    """
    from ..jobs.images import is_stored
    from ..jobs.predict import PredictionSettings, predict_folder, rows_here
    from ..jobs.table import read_rows
    from .engine import cluster_of, worker_model
    from .loading import load_scoring

    cluster = cluster_of(engine, address, workers, device)
    settings = PredictionSettings(false_alarm_rate, maps, overlays, masks, category)
    if report is not None:  # whatever could keep it from being written is known before anything is scored
        from ..evaluation.report import check_report_path, report_from_predictions, write_report

        check_report_path(report)
        if is_stored(folder):
            raise ValueError(f"{folder}: --report shows images of a folder; write the table alone, or copy the images to one")
        if report.resolve() == output.resolve():
            raise ValueError(f"{report}: is the table, too; name another file for the report")
    pipe = load_scoring(model, device, profile, precision)
    if report is not None and pipe.category_names is not None and category is None:
        raise ValueError(
            f"{model}: a model of several categories, whose scores do not compare; name the one to report on with --category"
        )
    make_rows = rows_here
    if cluster is not None:
        from ..cluster.prediction import rows_of_workers

        make_rows = rows_of_workers(cluster, worker_model(model, profile, precision))
    summary = predict_folder(pipe, folder, output, settings, batch_size, make_rows)
    done = "was complete already, nothing was scored" if summary.was_complete else "written"
    unknown = f", {summary.unknown} of a product unknown to the model" if summary.unknown else ""
    typer.echo(f"{output} {done}: {summary.images} images, {summary.defective} of them called defective{unknown}")
    if summary.unreadable:
        typer.echo(f"unreadable images: {summary.unreadable}", err=True)
        for message in summary.first_errors:
            typer.echo(f"  {message}", err=True)
        if summary.unreadable > len(summary.first_errors):
            typer.echo(f"  ... the others are in the column `error` of {output}", err=True)
    if report is not None:
        root = Path(folder).parent if Path(folder).is_file() else Path(folder)
        write_report(report_from_predictions(pipe, read_rows(output), root, false_alarm_rate), report)
        typer.echo(f"wrote {report}")
    if summary.unreadable and strict:
        raise typer.Exit(1)
