"""Takes new good images into a trained model without training: merges moments, fits the Gaussians anew, calibrates.

Networks stay as they are, and so does the space that they were trained in: what standardises features and colours. In that
space the Gaussians are those of all images together, exactly.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline, __version__
from diffad.data import DataError, Sample
from diffad.jobs.history import UPDATE, HistoryEntry, read_history, write_history
from diffad.models.half_precision import round_to_half
from diffad.monitoring.feedback_list import FeedbackList, read_feedback
from diffad.monitoring.sample_check import LEVEL, sample_objection
from diffad.system.atomic import writing
from diffad_training.accumulation import accumulate_grid, accumulate_scales, grid_gaussians, scale_gaussians
from diffad_training.config import TrainingConfig, load_config
from diffad_training.dataset import CachedDataset, build_cache
from diffad_training.good_images import group_names
from diffad_training.kept_moments import KeptMoments, image_digests
from diffad_training.update_images import UpdateImages, former_calibration_samples, new_images

SETTINGS = "training_config.json"


@dataclass(frozen=True)
class UpdateSettings:
    """What an update takes, and how.

    Args:
        feedback: list of the operator's words.
        rejected: folder with wrongly rejected parts of that list.
        data: where the training data lies now; None is where it was.
        calibrate_on_new: thresholds come from new held-out images alone.
        accept_change: take images that are not of the production of before; they alone calibrate then.
        all_good: subfolders all hold good images.
        batch_size: images per forward pass of scoring.
    """

    feedback: Path | None = None
    rejected: Path | None = None
    data: str | None = None
    calibrate_on_new: bool = False
    accept_change: bool = False
    all_good: bool = False
    batch_size: int = 8


def update(
    model: Path, folder: Path, settings: UpdateSettings, load: Callable[[str], DiffADPipeline]
) -> tuple[DiffADPipeline, HistoryEntry]:
    """Updates a model where it lies; a kill leaves the former model or the new one.

    Args:
        folder: good parts drawn at random from production, whatever the model says of them.
        load: loads the pipeline onto its device.

    Raises:
        DataError: if the model has no moments, or images that it needs are not there.
        ValueError: if the images are not of the production that the model was calibrated on, or a setting can't be used.
    """
    kept, config = KeptMoments.load(model), _settings_of(model)
    feedback = FeedbackList({}) if settings.feedback is None else read_feedback(settings.feedback)
    if settings.rejected is not None and settings.feedback is None:
        raise ValueError("--rejected: which of these parts were rejected wrongly is in the list: give it with --feedback")
    images = new_images(folder, settings.rejected, config, kept, feedback, settings.all_good)
    replaces = settings.calibrate_on_new or settings.accept_change
    former = [] if replaces else former_calibration_samples(model, config, kept, feedback, settings.data)
    pipe = load(str(model))
    before = pipe.digest
    _check_moments(pipe, kept, model)
    if not settings.accept_change:
        _check_production(pipe, images.fitted, folder, settings.batch_size)

    merge(pipe, kept, [*images.fitted, *images.rejected], config)
    calibration = [*former, *images.held_out]
    categories = None if pipe.category_names is None else [sample.category for sample in calibration]
    groups = group_names(calibration)
    pipe.calibrate([sample.read for sample in calibration], settings.batch_size, categories=categories, groups=groups)

    fitted, held_out = image_digests([*images.fitted, *images.rejected]), image_digests(images.held_out)
    kept.add_images(fitted, held_out)
    entry = HistoryEntry(
        event=UPDATE,
        version=__version__,
        model_before=before,
        model_after=pipe.digest,
        folder=str(folder.resolve()),
        calibrated=[sample.name for sample in images.held_out],
        fitted=[sample.name for sample in images.fitted],
        images=hashlib.sha256("".join(sorted(fitted + held_out)).encode()).hexdigest(),
        replaces=replaces,
        counts=_counts(images, len(calibration), kept),
    )
    save(pipe, model, kept, [*read_history(model), entry])
    return pipe, entry


@torch.no_grad()
def merge(pipe: DiffADPipeline, kept: KeptMoments, samples: Sequence[Sample], config: TrainingConfig) -> None:
    """Adds the moments of good images to those kept and fits all Gaussians, and the discriminant, to the sum.

    Raises:
        ImageError: naming an image that can't be read.
    """
    with tempfile.TemporaryDirectory() as cache:
        tiles = {"short_side": config.short_side, "tile_overlap": config.tile_overlap}
        build_cache(samples, pipe.feature_extractor, config.image_size, Path(cache), **tiles)
        cached = CachedDataset(Path(cache))
        for category in sorted({sample.category for sample in samples}):
            group = np.flatnonzero(cached.categories == category).tolist()
            new, means = accumulate_grid(pipe, cached, group, category if config.categories else None)
            for term, gaussian in grid_gaussians(pipe).items():
                _refit(kept, term, gaussian, new[term], category)
            new = accumulate_scales(pipe, cached, samples, group)
            for term, gaussian in scale_gaussians(pipe).items():
                _refit(kept, term, gaussian, new[term], category)
            if pipe.discriminant is not None:
                kept.add_pooled(means.numpy(), np.full(len(means), category))
        del cached  # Windows removes no file that is mapped
    # As training does, whose networks are rounded already
    for module in (*grid_gaussians(pipe).values(), *scale_gaussians(pipe).values()):
        round_to_half(module)
    if pipe.discriminant is not None:
        pipe.discriminant.fit(*kept.pooled)


def save(pipe: DiffADPipeline, model: Path, kept: KeptMoments, history: Sequence[HistoryEntry]) -> None:
    """Replaces all that an update changes in a model's folder together, or nothing."""
    changed = ("gaussian", "residual_gaussian", "multiscale", "feature_denoiser", "discriminant", "calibration", "profiles")
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept.tensors.values())
    with writing(model, size=size) as unfinished:
        for name in changed:
            part = getattr(pipe, name)
            if part is not None:
                part.save_pretrained(unfinished / name)
        kept.save(unfinished)
        write_history(history, unfinished)


def _refit(kept: KeptMoments, term: str, gaussian: torch.nn.Module, new: object, category: int) -> None:
    moments = kept.moments(term, category)
    moments.merge(new)
    gaussian.fit(moments, category)
    kept.add(category, {term: moments})


def _settings_of(model: Path) -> TrainingConfig:
    if not (model / SETTINGS).is_file():
        raise DataError(f"{model / SETTINGS}: no such file; name a folder that `diffad train` wrote")
    return load_config(str(model / SETTINGS), {})


def _check_moments(pipe: DiffADPipeline, kept: KeptMoments, model: Path) -> None:
    """Refuses moments that the Gaussians of the model are not of, told by their means.

    Raises:
        DataError: if they are of another model.
    """
    for term, gaussian in {**grid_gaussians(pipe), **scale_gaussians(pipe)}.items():
        names = [f"{term}.{category}.mean" for category in range(gaussian.config.num_classes)]
        means = torch.cat([kept.tensors[name] for name in names]) if kept.tensors.keys() >= set(names) else None
        # Give or take the last digit, because models are rounded
        if means is None or not torch.allclose(means.float(), gaussian.mean.cpu(), rtol=2e-3, atol=1e-4):
            raise DataError(f"{model}: its moments are not of its Gaussians ({term}); write them anew with training/refit.py")


def _check_production(pipe: DiffADPipeline, samples: Sequence[Sample], folder: Path, batch_size: int) -> None:
    """Refuses images that are not of the production that the model was calibrated on.

    Only those that will be fitted are asked, so that the images that calibrate are not chosen by their scores.

    Raises:
        ValueError: saying why, and how to update nevertheless.
    """
    of_image = [sample.category for sample in samples]
    categories = None if pipe.category_names is None else of_image
    output = pipe([sample.read for sample in samples], batch_size, categories=categories, map_size=(8, 8))
    for category in sorted(set(of_image)):
        scores = output.image_scores[[i for i, of_one in enumerate(of_image) if of_one == category]]
        level = LEVEL / len(set(of_image))
        calibration, single = pipe.calibration.calibration_scores_of(category), pipe.calibration.single_scores_of(category)
        objection = sample_objection(calibration, scores, level, single)
        if objection is not None:
            name = folder if pipe.category_names is None else folder / pipe.category_names[category]
            raise ValueError(
                f"{name}: {objection}. If these are good parts of this product, drawn at random, and production has changed, "
                "--accept-change takes them; thresholds then come from the new held-out images alone"
            )


def _counts(images: UpdateImages, calibration: int, kept: KeptMoments) -> dict[str, int]:
    return {
        "new images fitted": len(images.fitted),
        "wrongly rejected fitted": len(images.rejected),
        "new images held out": len(images.held_out),
        "images calibrated on": calibration,
        "known before": images.known,
        "defective by feedback": images.defective,
        "images fitted in all": len(kept.fitted),
    }
