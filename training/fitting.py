"""What a trained UNet is made a pipeline with: what good parts look like, the discriminant, the score and its calibration."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffad import DiffADPipeline, FeatureExtractor, JointUNet2DModel
from diffad.data import Sample
from diffad.models.half_precision import round_to_half
from diffad.scoring.config import DENOISER_TERMS
from diffad.scoring.fitting import split_calibration_images
from diffad.scoring.inputs import InputReader, load_region_at
from diffad.scoring.profiles import GAUSSIAN, profile_settings, scales_among
from diffad_training.accumulation import accumulate_grid, grid_gaussians, scale_gaussians
from diffad_training.components import (
    build_calibration,
    build_discriminant,
    build_feature_denoiser,
    build_gaussian,
    build_multiscale,
    build_profiles,
    scales_of_model,
)
from diffad_training.config import TrainingConfig, feature_denoiser_steps, load_config
from diffad_training.dataset import CachedDataset
from diffad_training.feature_denoising import train_feature_denoiser
from diffad_training.good_images import group_names, held_out_samples
from diffad_training.kept_moments import KeptMoments, image_digests
from diffad_training.map_choice import MapChoice, choose_map
from diffad_training.multiscale_fitting import fit_multiscale
from diffad_training.reference_choice import choose_references
from diffusers import DDPMScheduler


class GoodParts(NamedTuple):
    """Images of good parts that a model is fitted to and calibrated on.

    Args:
        cached: pixels and features of `samples`.
        samples: all of them.
        train_groups: for each category the indices of its training images, or tiles of them, in `cached`.
        held_out_samples: of all categories.
    """

    cached: CachedDataset
    samples: Sequence[Sample]
    train_groups: Sequence[Sequence[int]]
    held_out_samples: Sequence[Sample]


class FittedModel(NamedTuple):
    """A pipeline that is ready to be saved, how its map was chosen, and what an update needs; None where there is no such."""

    pipe: DiffADPipeline
    map_choice: MapChoice | None
    moments: KeptMoments | None


@torch.no_grad()
def fit_pipeline(
    unet: JointUNet2DModel, scheduler: DDPMScheduler, extractor: FeatureExtractor, data: GoodParts, config: TrainingConfig
) -> FittedModel:
    """Fits what good parts look like to each category's training images, chooses the map and calibrates on held-out images."""
    cached, samples, train_groups, held_out_samples = data
    channels, device = extractor.config.channels, extractor.device
    round_to_half(unet)
    scales = scales_of_model(config)
    multiscale = build_multiscale(config, extractor, min(map(len, train_groups)), scales)
    if multiscale is not None:
        round_to_half(multiscale)  # its projections
    pipe = DiffADPipeline(
        unet,
        scheduler,
        extractor,
        gaussian=build_gaussian(config, channels).to(device),
        residual_gaussian=build_gaussian(config, channels).to(device),
        calibration=build_calibration(config).to(device),
        discriminant=build_discriminant(config, channels),
        multiscale=multiscale and multiscale.to(device),
    )
    if not set(DENOISER_TERMS).isdisjoint(scales):
        pipe.register_modules(feature_denoiser=build_feature_denoiser(config, channels).to(device))
        steps = feature_denoiser_steps(config, sum(map(len, train_groups)))
        train_feature_denoiser(pipe.feature_denoiser, scheduler, extractor, cached, train_groups, config, steps)
        round_to_half(pipe.feature_denoiser)
    kept = KeptMoments() if config.keeps_moments else None
    pooled_features = _fit_gaussians(pipe, cached, train_groups, bool(config.categories), kept)
    if pipe.multiscale is not None:
        fit_multiscale(pipe.multiscale, extractor, cached, samples, train_groups, kept)
    for gaussians in (pipe.gaussian, pipe.residual_gaussian, pipe.feature_denoiser, pipe.multiscale):
        if gaussians is not None:
            round_to_half(gaussians)
    _fit_discriminant(pipe, pooled_features, cached, train_groups)
    indices = np.concatenate(train_groups)
    of_each = pooled_features, cached.categories[indices]
    pipe.register_modules(references=choose_references(cached.images, indices, *of_each, config.references))
    choice = choose_and_set_map(pipe, held_out_samples, config) if config.chooses_map else None
    terms_of_profiles = {} if choice is None else choice.terms_of_profiles
    pipe.set_calibrations(build_profiles(config, pipe.calibration, pipe.scales, terms_of_profiles))
    _calibrate(pipe, held_out_samples, config)
    return FittedModel(pipe, choice, _completed(kept, pipe, pooled_features, data))


@torch.no_grad()
def fit_first_pipeline(
    unet: JointUNet2DModel, scheduler: DDPMScheduler, extractor: FeatureExtractor, data: GoodParts, config: TrainingConfig
) -> FittedModel:
    """Fits all that needs no diffusion model, and calibrates the profile `gaussian` as the model's only score.

    The UNet is not trained yet.
    """
    cached, samples, train_groups, held_out_samples = data
    channels, device = extractor.config.channels, extractor.device
    calibration = build_calibration(config)
    settings = profile_settings(GAUSSIAN, calibration.score_config, scales_of_model(config))
    multiscale = build_multiscale(config, extractor, min(map(len, train_groups)), settings["scales"])
    round_to_half(multiscale)
    pipe = DiffADPipeline(
        unet,
        scheduler,
        extractor,
        # The profile does not ask it: one for every position would only make the model larger
        gaussian=build_gaussian(dataclasses.replace(config, shared_gaussian=True), channels).to(device),
        residual_gaussian=None,
        calibration=calibration.unfitted(**settings).to(device),
        discriminant=build_discriminant(config, channels),
        multiscale=multiscale.to(device),
    )
    kept = KeptMoments() if config.keeps_moments and config.profile == GAUSSIAN else None  # not of an unfinished model
    pooled_features = _fit_gaussians(pipe, cached, train_groups, bool(config.categories), kept)
    fit_multiscale(pipe.multiscale, extractor, cached, samples, train_groups, kept)
    for gaussians in (pipe.gaussian, pipe.multiscale):  # as of the finished model; the UNet goes on in full precision
        round_to_half(gaussians)
    _fit_discriminant(pipe, pooled_features, cached, train_groups)
    _calibrate(pipe, held_out_samples, config)
    return FittedModel(pipe, None, _completed(kept, pipe, pooled_features, data))


def _calibrate(pipe: DiffADPipeline, held_out_samples: Sequence[Sample], config: TrainingConfig) -> None:
    print(f"calibrating on {len(held_out_samples)} held-out good images", flush=True)
    categories = [sample.category for sample in held_out_samples] if config.categories else None
    images, groups = [sample.read for sample in held_out_samples], group_names(held_out_samples)
    pipe.calibrate(images, categories=categories, roi=config.roi, groups=groups)


def _completed(
    kept: KeptMoments | None, pipe: DiffADPipeline, pooled_features: np.ndarray, data: GoodParts
) -> KeptMoments | None:
    """The moments of the Gaussians that the model has in the end, with what else an update needs."""
    if kept is None:
        return None
    kept.keep_only({*grid_gaussians(pipe), *scale_gaussians(pipe)})
    indices = [index for group in data.train_groups for index in group]
    if pipe.discriminant is not None:
        kept.add_pooled(pooled_features, data.cached.categories[indices])
    fitted = [data.samples[owner] for owner in np.unique(data.cached.owners[indices])]
    kept.add_images(image_digests(fitted), image_digests(data.held_out_samples))
    return kept


def _fit_discriminant(
    pipe: DiffADPipeline, pooled_features: np.ndarray, cached: CachedDataset, train_groups: Sequence[Sequence[int]]
) -> None:
    """Fits what recognises categories, where there are several, to the means `(N, D)` of the training images' features."""
    if pipe.discriminant is not None:
        indices = [index for group in train_groups for index in group]
        pipe.discriminant.fit(pooled_features, cached.categories[indices]).to(pipe.feature_extractor.device)


def _fit_gaussians(
    pipe: DiffADPipeline,
    cached: CachedDataset,
    train_groups: Sequence[Sequence[int]],
    has_categories: bool,
    kept: KeptMoments | None,
) -> np.ndarray:
    """Fits the Gaussians of features and, where there is what makes them, of residuals; returns the features' means `(N, D)`.

    Args:
        kept: takes the moments.
    """
    means = []
    for category, group in enumerate(train_groups):
        moments, means_of_group = accumulate_grid(pipe, cached, group, category if has_categories else None)
        means.append(means_of_group)
        for term, gaussian in grid_gaussians(pipe).items():
            gaussian.fit(moments[term], category)
        if kept is not None:
            kept.add(category, moments)
    return torch.cat(means).numpy()


def choose_and_set_map(pipe: DiffADPipeline, held_out_samples: Sequence[Sample], config: TrainingConfig) -> MapChoice:
    """Chooses the map on the images that will give the score's statistics, and keeps of the model what the score needs."""
    statistics = statistics_samples(held_out_samples, config)
    images = [sample.read for sample in statistics]
    categories = [sample.category for sample in statistics] if config.categories else None
    calibration = pipe.calibration.unfitted(scales=pipe.scales)
    scorer = pipe.make_scorer(calibration)
    reader = InputReader(scorer, pipe.discriminant, pipe.feature_extractor.device)
    roi = None if config.roi is None else load_region_at(config.roi, lambda height, width: pipe.image_size)
    choice = choose_map(scorer, reader, images, categories, config.seed, roi)
    print(f"anomaly map: {choice.name}", flush=True)
    weights = dict.fromkeys(choice.chosen, 1.0)
    pipe.calibration = pipe.calibration.unfitted(
        weights=weights, scales=scales_among({*weights, *pipe.calibration.config.verdict})
    )
    of_profiles = build_profiles(config, pipe.calibration, pipe.scales, choice.terms_of_profiles).values()
    needed = {scale for calibration in (pipe.calibration, *of_profiles) for scale in calibration.config.scales}
    kept = tuple(scale for scale in pipe.multiscale.config.scales if scale in needed)
    pipe.register_modules(multiscale=pipe.multiscale.with_only(kept))
    return choice


def threshold_samples(model: Path) -> list[Sample]:
    """The held-out images of a trained model that are behind its thresholds, not its statistics.

    Raises:
        DataError: as [`held_out_samples`].
    """
    held_out, config = held_out_samples(model), load_config(str(model / "training_config.json"), {})
    of_image = np.array([sample.category for sample in held_out])
    _, of_categories = split_calibration_images(build_calibration(config), of_image, group_names(held_out))
    return [held_out[i] for groups in of_categories for members in groups for i in members]


def statistics_samples(held_out_samples: Sequence[Sample], config: TrainingConfig) -> list[Sample]:
    """The held-out images whose groups calibration will take the statistics from, and no threshold."""
    of_image = np.array([sample.category for sample in held_out_samples])
    of_statistics, _ = split_calibration_images(build_calibration(config), of_image, group_names(held_out_samples))
    return [held_out_samples[i] for i in of_statistics]
