"""The model card (README.md) of a model repository, from what training and evaluation wrote; asks no network."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("anomaly-detection", "anomaly-localization", "industrial-inspection", "diffad")
PIPELINE_TAG = "image-segmentation"  # the Hub's task that is nearest: pixels are marked
# Metric of metrics.json: type in the card's metadata, and heading.
METRICS = {
    "image_auroc": ("roc_auc", "image AUROC"),
    "image_ap": ("average_precision", "image AP"),
    "pixel_auroc": ("roc_auc", "pixel AUROC"),
    "pixel_ap": ("average_precision", "pixel AP"),
    "aupro_30": ("aupro", "AUPRO"),
}
TERM_NAMES = {
    "paper (Eq. 11)": "paper's Eq. 11",
    "kl": "KL divergence of the reverse step",
    "rgb": "squared error in pixels",
    "feature": "squared error of rebuilt features",
    "residual": "Mahalanobis distance of that error",
    "mahalanobis": "Mahalanobis distance of the features",
}
MVTEC_AD_LICENSE = "cc-by-nc-sa-4.0"
# fmt: off
MVTEC_AD_CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile", "toothbrush",
    "transistor", "wood", "zipper",
)
# fmt: on


@dataclass(frozen=True)
class Evaluation:
    """What training/evaluate.py wrote about one category.

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


@dataclass(frozen=True)
class DataTerms:
    """What only the author knows of the training images.

    Args:
        license: identifier of the Hub for the weights' licence, such as `apache-2.0` or `cc-by-nc-sa-4.0`; None states none.
        datasets: names of data sets on the Hub.
        note: where the images come from, in Markdown.
    """

    license: str | None = None
    datasets: Sequence[str] = ()
    note: str | None = None


def read_evaluation(folder: str | Path) -> Evaluation:
    """Reads the output folder of an evaluation.

    Raises:
        ValueError: naming the file that is missing or not of an evaluation.
    """
    folder = Path(folder)
    paths = {name: folder / name for name in ("metrics.json", "scores.csv")}
    for path in paths.values():
        if not path.is_file():
            raise ValueError(f"{path}: no such file; --evaluation wants the output folder of an evaluation")
    try:
        metrics = json.loads(paths["metrics.json"].read_text())
        with paths["scores.csv"].open(newline="") as file:
            rows = [(row["defect"], int(row["called_defective"])) for row in csv.DictReader(file)]
        kinds = sorted({kind for kind, _ in rows}, key=lambda kind: (kind != "good", kind))
        calls = {kind: [called for other, called in rows if other == kind] for kind in kinds}
        defects = [(kind, len(called), sum(called) / len(called)) for kind, called in calls.items()]
        sheet = folder / "sheet.png"
        return Evaluation(metrics["data"], metrics, defects, sheet if sheet.is_file() else None)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not the output of an evaluation ({error!r})") from None


def model_card(
    repo_id: str,
    configs: dict[str, dict],
    version: str,
    code_module: str,
    evaluations: Sequence[Evaluation] = (),
    sheets: Sequence[str] = (),
    training: dict | None = None,
    training_summary: dict | None = None,
    terms: DataTerms | None = None,
) -> ModelCard:
    """Renders the card.

    Args:
        repo_id: `owner/name` on the Hub, or the repository's folder.
        configs: configuration of each component by its name.
        version: of diffad.
        code_module: name of the module that holds the repository's code.
        evaluations: none, or one for each category.
        sheets: their sample pictures, as paths in the repository; empty where there is none.
        training: settings of the training run without paths of the machine, as in training_config.json.
        training_summary: what the training run cost.
        terms: what the author says of the data.

    Raises:
        ValueError: if an evaluation is of another calibration than the model's, or the licence of MVTec AD is left out.
    """
    terms = terms or DataTerms()
    calibration, unet = configs["calibration"], configs["unet"]
    for evaluation in evaluations:
        _check_belongs(evaluation, calibration)
        if evaluation.data in MVTEC_AD_CATEGORIES and terms.license is None:
            raise ValueError(
                f"the data folder is named {evaluation.data} like a category of MVTec AD, whose licence also binds models "
                f"trained on it: give the license, {MVTEC_AD_LICENSE} if it is, or yours if the images are your own"
            )
    name = repo_id.rpartition("/")[2]
    size = unet["sample_size"]
    trained_on = training["data"] if training else None
    class_names = configs["discriminant"]["class_names"] if "discriminant" in configs else []
    data = ModelCardData(
        license=terms.license,
        library_name="diffusers",
        pipeline_tag=PIPELINE_TAG,
        tags=list(TAGS),
        datasets=list(terms.datasets) or None,
        model_name=name,
        eval_results=[result for evaluation in evaluations for result in _results(evaluation, terms.datasets)] or None,
    )
    if not evaluations:
        data.pop("model_name")
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=name,
        repo_id=repo_id,
        version=version,
        code_module=code_module,
        requirements=_requirements(configs),
        class_names=class_names,
        false_alarm_rate=_false_alarm_rate(evaluations),
        data_note=terms.note or "The author has not described the training images.",
        license=terms.license,
        trained_on=trained_on,
        image_size=f"{size}x{size}" if isinstance(size, int) else "x".join(map(str, size)),
        protocol=_protocol(calibration["num_calibration_images"], class_names),
        map_sizes=" and ".join(dict.fromkeys(_map_size(evaluation) for evaluation in evaluations)),
        evaluations=[
            {"data": evaluation.data, "sheet": sheet, "command": _evaluation_command(evaluation, trained_on, name)}
            for evaluation, sheet in zip(evaluations, sheets, strict=True)
        ],
        category_table=_category_table(evaluations),
        operating_points="\n".join(_operating_point(evaluation) for evaluation in evaluations),
        defect_table=_defect_table(evaluations),
        recipe=_recipe(calibration),
        term_table="\n\n".join(_term_table(evaluation, titled=len(evaluations) > 1) for evaluation in evaluations),
        limits=_limits(configs, calibration["num_calibration_images"], training),
        costs=_costs(evaluations, training_summary),
        train_command=_train_command(trained_on, class_names, name) if training else None,
        seed=training["seed"] if training else None,
    )


def _check_belongs(evaluation: Evaluation, calibration: dict) -> None:
    recipe = evaluation.metrics["recipe"]
    differing = [key for key in sorted(recipe.keys() & calibration.keys()) if recipe[key] != calibration[key]]
    if differing:
        raise ValueError(
            f"the evaluation of {evaluation.data} was made with another calibration than the model's "
            f"({differing[0]} {recipe[differing[0]]}, now {calibration[differing[0]]}): evaluate again"
        )


def _results(evaluation: Evaluation, datasets: Sequence[str]) -> list[EvalResult]:
    metrics = evaluation.metrics["scores"]["ensemble"]
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="anomaly detection and localization",
            dataset_type=datasets[0] if datasets else evaluation.data,
            dataset_name=evaluation.data,
            dataset_config=evaluation.data,
            dataset_split="test",
            metric_type=kind,
            metric_name=heading,
            metric_value=round(metrics[key], 4),
        )
        for key, (kind, heading) in METRICS.items()
        if key in metrics
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percentages(metrics: dict) -> list[str]:
    return [f"{100 * metrics[key]:.1f}" if key in metrics else "" for key in METRICS]


def _category_table(evaluations: Sequence[Evaluation]) -> str:
    headings = [heading for _, heading in METRICS.values()]
    rows = [
        [
            evaluation.data,
            str(evaluation.metrics["images"]["good"]),
            str(evaluation.metrics["images"]["defective"]),
            *_percentages(evaluation.metrics["scores"]["ensemble"]),
        ]
        for evaluation in evaluations
    ]
    if len(rows) > 1:
        # Every metric of every category is there or none is (no masks), so that a mean over some would mislead.
        values = [evaluation.metrics["scores"]["ensemble"] for evaluation in evaluations]
        shared = [key for key in METRICS if all(key in metrics for metrics in values)]
        mean = {key: sum(metrics[key] for metrics in values) / len(values) for key in shared}
        rows.append(["**mean**", "", "", *_percentages(mean)])
    return _table(["category", "good", "defective", *headings], rows)


def _operating_point(evaluation: Evaluation) -> str:
    point = evaluation.metrics["operating_point"]
    return (
        f"{evaluation.data}: at a requested false-alarm rate of {point['requested_false_alarm_rate']:.1%}, "
        f"{point['detection_rate']:.1%} of the defective and {point['realised_false_alarm_rate']:.1%} of the good test images "
        "are called defective."
    )


def _defect_table(evaluations: Sequence[Evaluation]) -> str:
    rows = [
        [evaluation.data, kind, str(images), f"{100 * share:.1f}"]
        for evaluation in evaluations
        for kind, images, share in evaluation.defects
    ]
    return _table(["category", "kind", "images", "called defective (%)"], rows)


def _term_table(evaluation: Evaluation, titled: bool) -> str:
    scores = evaluation.metrics["scores"]
    terms = [name for name in scores if name != "ensemble" and "@" not in name]
    rows = [[TERM_NAMES.get(name, name), *_percentages(scores[name])] for name in terms]
    table = _table(["score", *(heading for _, heading in METRICS.values())], rows)
    return f"{evaluation.data}:\n\n{table}" if titled else table


def _recipe(calibration: dict) -> str:
    weights = ", ".join(f"{weight:g} x {TERM_NAMES.get(term, term)}" for term, weight in calibration["weights"].items())
    return f"Anomaly map: {weights}; mean over the timesteps {', '.join(map(str, calibration['timesteps']))}."


def _false_alarm_rate(evaluations: Sequence[Evaluation]) -> float:
    return evaluations[0].metrics["operating_point"]["requested_false_alarm_rate"] if evaluations else 0.05


def images_per_category(num_calibration_images: int | Sequence[int]) -> list[int]:
    """A calibration's `num_calibration_images` as one number per category."""
    return [num_calibration_images] if isinstance(num_calibration_images, int) else list(num_calibration_images)


def _protocol(num_calibration_images: int | Sequence[int], class_names: Sequence[str]) -> str:
    counts = images_per_category(num_calibration_images)
    of_classes = f" ({', '.join(f'{name} {count}' for name, count in zip(class_names, counts))})" if class_names else ""
    return (
        "Training and calibration read good images only, no defective one and no mask. Statistics and thresholds come from "
        f"{sum(counts)} good images{of_classes} that neither the network nor the Gaussians were fitted on."
    )


def _limits(configs: dict[str, dict], num_calibration_images: int | Sequence[int], training: dict | None) -> list[str]:
    counts = images_per_category(num_calibration_images)
    num_calibration_images, of_category = min(counts), " of the category with the fewest" if len(counts) > 1 else ""
    limits = [
        "Valid for images taken as in training: same part, camera, light, framing. After a change, recalibrate on good images.",
        f"{num_calibration_images} good images{of_category} set the thresholds: a false-alarm rate of {1 / (num_calibration_images + 1):.1%} or more "
        "can be guaranteed, on average over such sets of images. The rate met on one test set scatters around it.",
        "A high score says that something is unusual, not what it is; a defect smaller than a few pixels after resizing can be "
        "missed.",
    ]
    if configs["gaussian"]["grid"] is not None:
        limits.append("Normal features are kept for each position: parts must lie in the image as they did in training.")
    if training:
        limits.append("Figures are of one training run, with one seed.")
    return limits


def _costs(evaluations: Sequence[Evaluation], summary: dict | None) -> list[str]:
    costs = []
    if summary:
        costs.append(
            f"Training: {summary['steps']} steps in {summary['seconds'] / 60:.0f} minutes, peak memory "
            f"{summary['peak_memory_mib'] / 1024:.1f} GiB."
        )
    for evaluation in evaluations:
        cost = evaluation.metrics["cost"]
        costs.append(
            f"Scoring ({evaluation.data}): {cost['images_per_second']:.1f} images/s one by one on {cost['device']} "
            f"({cost['threads']} threads), {cost['unet_parameters'] / 1e6:.1f} M UNet parameters; peak memory of the "
            f"evaluation {cost['peak_memory_mib'] / 1024:.1f} GiB."
        )
    return costs or ["Not measured."]


def _train_command(trained_on: str, class_names: Sequence[str], name: str) -> str:
    # The categories of a model of several lie side by side, and each is evaluated by itself.
    data = "DATA" if class_names else f"DATA/{trained_on}"
    return f"accelerate launch -m diffad_training.train --config training_config.json --data {data} --output_dir runs/{name}"


def _map_size(evaluation: Evaluation) -> str:
    return evaluation.metrics.get("map_size", "256x256")  # older evaluations name none


def _evaluation_command(evaluation: Evaluation, trained_on: str | None, name: str) -> str:
    output = f"{name}-evaluation" if evaluation.data == trained_on else f"{name}-evaluation-{evaluation.data}"
    rate = evaluation.metrics["operating_point"]["requested_false_alarm_rate"]
    categories = evaluation.metrics.get("class_labels", {"given": False})  # older evaluations have none
    options = [f"--category {label}" for label in categories["images"]] if categories["given"] else []
    if _map_size(evaluation) != "256x256":
        options.append(f"--map_size {_map_size(evaluation)}")
    return (
        f"python -m diffad.evaluation.evaluate --model runs/{name} --data DATA/{evaluation.data} "
        f"--output_dir runs/{output} --false_alarm_rate {rate:g}" + "".join(f" {option}" for option in options)
    )


def _requirements(configs: dict[str, dict]) -> str:
    backbone = "timm" if configs["feature_extractor"]["backbone"] else "transformers"
    return f"diffusers accelerate torchvision scipy {backbone}"
