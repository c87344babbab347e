"""What an evaluation left in its output folder, read for a model card, and whether it is of the model that the card is for."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..scoring.calibration import FORMER_NAMES
from ..system.text import original_text
from .checked_json import check_kind, read_checked

# What a card needs of metrics.json, with its kind.
NEEDED = {
    "data": str,
    "recipe": dict,
    "scores.ensemble": dict,
    "images.good": int,
    "images.defective": int,
    "operating_point.requested_false_alarm_rate": float,
    "operating_point.realised_false_alarm_rate": float,
    "operating_point.detection_rate": float,
    "cost.images_per_second": float,
    "cost.device": str,
    "cost.threads": int,
    "cost.unet_parameters": float,
    "cost.peak_memory_mib": float,
}


@dataclass(frozen=True)
class EvaluationRecord:
    """What `diffad evaluate` wrote about one category.

    Args:
        data: name of the data folder.
        metrics: content of metrics.json.
        defects: `(kind, images, share called defective)`, the good images first.
        sheet: sample pictures, or None.
    """

    data: str
    metrics: dict
    defects: list[tuple[str, int, float]]
    sheet: Path | None

    @property
    def false_alarm_rate(self) -> float:
        """Share of good parts that may be called defective, as it was requested."""
        return self.metrics["operating_point"]["requested_false_alarm_rate"]

    @property
    def map_size(self) -> str:
        """`HEIGHTxWIDTH` at which maps and masks were compared; evaluations before diffad 0.2 name none."""
        return self.metrics.get("map_size", "256x256")

    @property
    def given_categories(self) -> list[str]:
        """Categories that were given rather than recognised; evaluations before diffad 0.2 have none."""
        categories = self.metrics.get("class_labels", {"given": False})
        return list(categories["images"]) if categories["given"] else []

    @property
    def names_its_model(self) -> bool:
        """Whether it says which model was evaluated; those before diffad 0.2 don't."""
        return "model_digest" in self.metrics


def read_evaluation(folder: str | Path) -> EvaluationRecord:
    """Reads the output folder of an evaluation.

    Raises:
        ValueError: naming the file that is missing or not of an evaluation.
    """
    folder = Path(folder)
    metrics_file, scores_file, sheet = (folder / name for name in ("metrics.json", "scores.csv", "sheet.png"))
    for path in (metrics_file, scores_file):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; --evaluation wants the output folder of an evaluation")
    what = "the output of an evaluation"
    metrics = read_checked(metrics_file, what, NEEDED)
    for name, row in metrics["scores"].items():
        check_kind(metrics_file, what, f"scores.{name}", row, dict)
        for metric, value in row.items():
            check_kind(metrics_file, what, f"scores.{name}.{metric}", value, float)
    if Path(metrics["data"]).name != metrics["data"]:
        raise ValueError(f"{metrics_file}: not {what}: data is {metrics['data']!r}, not the name of a folder")
    return EvaluationRecord(metrics["data"], metrics, _read_defects(scores_file), sheet if sheet.is_file() else None)


def check_is_of_model(evaluation: EvaluationRecord, calibration: Mapping[str, object], digest: str) -> None:
    """Refuses an evaluation of another model.

    Evaluations before diffad 0.2 don't say which model they measured: of these only the settings of the score and the number of
    calibration images are compared.

    Args:
        evaluation: as it was read.
        calibration: settings of the model's calibration.
        digest: of the model, by [`diffad.models.digest.model_digest`].

    Raises:
        ValueError: naming the data and the first difference.
    """
    settings = {FORMER_NAMES.get(name, name): value for name, value in evaluation.metrics["recipe"].items()}
    compared = sorted(settings.keys() & calibration.keys())
    differences = [(name, settings[name], calibration[name]) for name in compared if settings[name] != calibration[name]]
    if not differences and evaluation.names_its_model and evaluation.metrics["model_digest"] != digest:
        differences = [("model_digest", evaluation.metrics["model_digest"], digest)]
    if differences:
        name, evaluated, present = differences[0]
        other = "model" if name == "model_digest" else "calibration"
        raise ValueError(
            f"the evaluation of {evaluation.data} was made with another {other} than the one to be uploaded "
            f"({name} {evaluated}, now {present}): evaluate again"
        )


def _read_defects(path: Path) -> list[tuple[str, int, float]]:
    """Kind of defect, number of images and share of them called defective, the good images first."""
    calls: dict[str, list[int]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                calls.setdefault(original_text(row["defect"]), []).append(int(row["called_defective"]))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not the output of an evaluation ({error!r})") from None
    kinds = sorted(calls, key=lambda kind: (kind != "good", kind))
    return [(kind, len(calls[kind]), sum(calls[kind]) / len(calls[kind])) for kind in kinds]
