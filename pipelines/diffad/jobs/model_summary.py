"""What a trained pipeline is, in the words of its user."""

import json
from collections.abc import Mapping
from pathlib import Path

from ..pipeline_diffad import DiffADPipeline
from ..runtime.description import DetectorDescription

FUSIONS = {"sum": "standardised", "tails": "as tail probabilities"}
FALSE_ALARM_RATES = (0.05, 0.01)


def summarize_model(pipe: DiffADPipeline) -> dict[str, str]:
    """Headings and what there is to say under them, in reading order."""
    extractor, settings = pipe.feature_extractor.config, pipe.calibration.config
    backbone = extractor.backbone or extractor.transformers_config["model_type"]
    parameters = sum(p.numel() for p in pipe.unet.parameters())
    summary = {
        "image size": "{1} x {0} pixels (width x height)".format(*pipe.image_size),
        "feature extractor": f"{backbone}, {extractor.channels} channels, a position every {extractor.stride} pixels",
        "UNet": f"{parameters / 1e6:.1f} M parameters, "
        + ("not trained" if pipe.residual_gaussian is None else f"predicts {pipe.scheduler.config.prediction_type}"),
        "anomaly map": f"{_sum_of(settings.weights)}, {FUSIONS[settings.fusion]}, smoothing {settings.smoothing_sigma:g}",
        "image score": f"{_sum_of(settings.verdict)}, the highest {settings.verdict_area:.3g} of the pixels of each"
        if settings.verdict
        else f"mean of the map's highest {settings.top_k} pixel(s)",
        "timesteps": ", ".join(map(str, settings.timesteps)),
        "calibration images": ", ".join(map(str, pipe.calibration.images_per_category)),
    }
    for name in pipe.profile_names[1:]:
        settings = pipe.calibration_of(name).config
        summary[f"profile {name}"] = f"map {_sum_of(settings.weights)}; score {_sum_of(settings.verdict)}"
    if pipe.references is not None:
        turned = ", compared in all directions" if pipe.references.config.turns else ""
        summary["reference images"] = f"{len(pipe.references.config.categories)} photographs of good parts, for repair{turned}"
    if pipe.category_names:
        summary["categories"] = ", ".join(pipe.category_names)
    for index, name in enumerate(pipe.category_names or [""]):
        for rate in FALSE_ALARM_RATES:
            summary[f"threshold at {rate:.0%}" + f", {name}" * bool(name)] = _threshold(pipe, rate, index)
    return summary


def summarize_exported(folder: Path) -> dict[str, str]:
    """The same of an exported model.

    Raises:
        ExportError: if the folder is damaged.
    """
    description = DetectorDescription.read(folder)
    score = description.score
    summary = {
        "exported model": f"{description.graph}, for {description.runtime}, {description.weights} weights",
        "image size": "{1} x {0} pixels (width x height)".format(*description.image_size),
        "anomaly map": f"{_sum_of(score.weights)}, {FUSIONS[score.fusion]}",
        "made by": f"diffad {description.version}, from the model {description.model}",
    }
    if description.category_names:
        summary["categories"] = ", ".join(description.category_names)
    for precision in description.precisions:
        of_categories = description.calibrations.get(precision, ())
        images = ", ".join(str(len(one.scores)) for one in of_categories)
        summary[precision] = f"calibrated on {images} images" if images else "not calibrated"
    return summary


def is_unfinished(folder: Path) -> bool:
    """Whether the model in a folder is the first one of a training that has not ended there."""
    return _training_summary(folder).get("finished") is False


def map_choice(folder: Path) -> str | None:
    """How training chose the anomaly map of the model in a folder, or None where it says nothing of it."""
    choice = _training_summary(folder).get("map_choice")
    if choice is None:
        return None
    tried = f"on {choice['synthetic_defects']} synthetic defects on {choice['good_images']} good image(s)"
    if not choice["margin"]:
        return f"the default; no other was better by more than chance {tried}"
    return f"{choice['chosen']}; AP {choice['margin']:.1%} above the default's, +- {choice['standard_error']:.1%}, {tried}"


def _training_summary(folder: Path) -> dict:
    """What training wrote of itself beside a model; empty where it wrote nothing."""
    path = folder / "training_summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _sum_of(weights: Mapping[str, float]) -> str:
    return " + ".join(term if weight == 1 else f"{weight:.3g} {term}" for term, weight in weights.items())


def _threshold(pipe: DiffADPipeline, rate: float, category: int) -> str:
    calibration = pipe.calibration
    try:
        image, pixel = calibration.image_threshold(rate, category), calibration.pixel_threshold(rate, category)
        return f"{image:.4g} (image), {pixel:.4g} (pixel)"
    except ValueError as reason:
        return f"none: {reason}"
