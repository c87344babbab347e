"""The model card (README.md) of a model repository, from what training and evaluation wrote; asks no network."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.outputs import masks_in_words
from .evaluation_record import EvaluationRecord, check_is_of_model

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


def model_card(
    repo_id: str,
    configs: Mapping[str, Mapping],
    digest: str,
    version: str,
    code_module: str,
    evaluations: Sequence[EvaluationRecord] = (),
    sheets: Sequence[str] = (),
    training: Mapping | None = None,
    training_summary: Mapping | None = None,
    terms: DataTerms | None = None,
) -> ModelCard:
    """Renders the card.

    Args:
        repo_id: `owner/name` on the Hub, or the repository's folder.
        configs: configuration of each component by its name, as JSON has it.
        digest: of the model, by [`diffad.models.digest.model_digest`].
        version: of diffad.
        code_module: name of the module that holds the repository's code.
        evaluations: none, or one for each category.
        sheets: their sample pictures, as paths in the repository; empty where there is none.
        training: settings of the training run without paths of the machine, as in training_config.json.
        training_summary: what the training run cost.
        terms: what the author says of the data.

    Raises:
        ValueError: if an evaluation is of another model, or the licence of MVTec AD is left out.
    """
    terms = terms or DataTerms()
    calibration, unet = configs["calibration"], configs["unet"]
    for evaluation in evaluations:
        check_is_of_model(evaluation, calibration, digest)
        if evaluation.data in MVTEC_AD_CATEGORIES and terms.license is None:
            raise ValueError(
                f"the data folder is named {evaluation.data} like a category of MVTec AD, whose licence also binds models "
                f"trained on it: give the license, {MVTEC_AD_LICENSE} if it is, or yours if the images are your own"
            )
    name = repo_id.rpartition("/")[2]
    size = unet["sample_size"]
    trained_on = training["data"] if training else None
    category_names = configs["discriminant"]["class_names"] if "discriminant" in configs else []
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
        category_names=category_names,
        references=len(configs["references"]["categories"]) if "references" in configs else 0,
        false_alarm_rate=evaluations[0].false_alarm_rate if evaluations else 0.05,
        data_note=terms.note or "The author has not described the training images.",
        license=terms.license,
        trained_on=trained_on,
        image_size=f"{size}x{size}" if isinstance(size, int) else "x".join(map(str, size)),
        protocol=_protocol(calibration["num_calibration_images"], category_names),
        map_sizes=" and ".join(dict.fromkeys(evaluation.map_size for evaluation in evaluations)),
        evaluations=[
            {"data": evaluation.data, "sheet": sheet, "command": _evaluation_command(evaluation, trained_on, name)}
            for evaluation, sheet in zip(evaluations, sheets, strict=True)
        ],
        category_table=_category_table(evaluations),
        operating_points="\n".join(_operating_point(evaluation) for evaluation in evaluations),
        defect_table=_defect_table(evaluations),
        score=_score_in_words(calibration),
        term_table="\n\n".join(_term_table(evaluation, titled=len(evaluations) > 1) for evaluation in evaluations),
        limits=_limits(configs, evaluations, training),
        costs=_costs(evaluations, training_summary),
        train_command=_train_command(trained_on, category_names, name) if training else None,
        seed=training["seed"] if training else None,
    )


def _results(evaluation: EvaluationRecord, datasets: Sequence[str]) -> list[EvalResult]:
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
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _percentages(metrics: Mapping) -> list[str]:
    return [f"{100 * metrics[key]:.1f}" if key in metrics else "" for key in METRICS]


def _category_table(evaluations: Sequence[EvaluationRecord]) -> str:
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


def _operating_point(evaluation: EvaluationRecord) -> str:
    point = evaluation.metrics["operating_point"]
    return (
        f"{evaluation.data}: at a requested false-alarm rate of {point['requested_false_alarm_rate']:.1%}, "
        f"{point['detection_rate']:.1%} of the defective and {point['realised_false_alarm_rate']:.1%} of the good test images "
        "are called defective." + (f" Masks: {masks_in_words(point)}." if "seg_f1" in point else "")
    )


def _defect_table(evaluations: Sequence[EvaluationRecord]) -> str:
    rows = [
        [evaluation.data, kind, str(images), f"{100 * share:.1f}"]
        for evaluation in evaluations
        for kind, images, share in evaluation.defects
    ]
    return _table(["category", "kind", "images", "called defective (%)"], rows)


def _term_table(evaluation: EvaluationRecord, titled: bool) -> str:
    scores = evaluation.metrics["scores"]
    terms = [name for name in scores if name != "ensemble" and "@" not in name]
    rows = [[TERM_NAMES.get(name, name), *_percentages(scores[name])] for name in terms]
    table = _table(["score", *(heading for _, heading in METRICS.values())], rows)
    return f"{evaluation.data}:\n\n{table}" if titled else table


def _score_in_words(calibration: Mapping) -> str:
    weights = ", ".join(f"{weight:g} x {TERM_NAMES.get(term, term)}" for term, weight in calibration["weights"].items())
    return f"Anomaly map: {weights}; mean over the timesteps {', '.join(map(str, calibration['timesteps']))}."


def images_per_category(num_calibration_images: int | Sequence[int]) -> list[int]:
    """A calibration's `num_calibration_images` as one number per category."""
    return [num_calibration_images] if isinstance(num_calibration_images, int) else list(num_calibration_images)


def _protocol(num_calibration_images: int | Sequence[int], category_names: Sequence[str]) -> str:
    counts = images_per_category(num_calibration_images)
    of_categories = f" ({', '.join(f'{name} {n}' for name, n in zip(category_names, counts))})" if category_names else ""
    return (
        "Training and calibration read good images only, no defective one and no mask. The thresholds come from "
        f"{sum(counts)} calibration images{of_categories}: good ones that neither the network nor the Gaussians were fitted on."
    )


def _limits(configs: Mapping[str, Mapping], evaluations: Sequence[EvaluationRecord], training: Mapping | None) -> list[str]:
    counts = images_per_category(configs["calibration"]["num_calibration_images"])
    n, of_category = min(counts), " of the category with the fewest" if len(counts) > 1 else ""
    limits = [
        "Valid for images taken as in training: same part, camera, light, framing. After a change, recalibrate on good images.",
        f"{n} calibration images{of_category} set the thresholds: a false-alarm rate of {1 / (n + 1):.1%} or more can be "
        "guaranteed, on average over such sets of images. The rate met on one test set scatters around it.",
        "A high score says that something is unusual, not what it is; a defect smaller than a few pixels after resizing can be "
        "missed.",
    ]
    if configs["gaussian"]["grid"] is not None:
        limits.append("Normal features are kept for each position: parts must lie in the image as they did in training.")
    if training:
        limits.append("Figures are of one training run, with one seed.")
    limits += [
        f"The evaluation of {one.data} does not say which model it measured; settings of the score and number of calibration "
        "images are this model's."
        for one in evaluations
        if not one.names_its_model
    ]
    return limits


def _costs(evaluations: Sequence[EvaluationRecord], summary: Mapping | None) -> list[str]:
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


def _train_command(trained_on: str, category_names: Sequence[str], name: str) -> str:
    # The categories of a model of several lie side by side, and each is evaluated by itself.
    data = "DATA" if category_names else f"DATA/{trained_on}"
    words = ["accelerate", "launch", "-m", "diffad_training.train", "--config", "training_config.json"]
    return shlex.join([*words, "--data", data, "--output_dir", f"runs/{name}"])


def _evaluation_command(evaluation: EvaluationRecord, trained_on: str | None, name: str) -> str:
    output = f"{name}-evaluation" if evaluation.data == trained_on else f"{name}-evaluation-{evaluation.data}"
    words = ["diffad", "evaluate", f"DATA/{evaluation.data}", "--model", f"runs/{name}", "--output", f"runs/{output}"]
    words += ["--false-alarm-rate", f"{evaluation.false_alarm_rate:g}"]
    for category in evaluation.given_categories:
        words += ["--category", category]
    if evaluation.map_size != "256x256":
        words += ["--map-size", evaluation.map_size]
    return shlex.join(words)


def _requirements(configs: Mapping[str, Mapping]) -> str:
    backbone = "timm" if configs["feature_extractor"]["backbone"] else "transformers"
    return f"diffusers accelerate torchvision scipy {backbone}"
