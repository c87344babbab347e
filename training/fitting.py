"""What a trained UNet is made a pipeline with: the Gaussians of good parts, the discriminant and the calibration."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffad import DiffADPipeline, FeatureExtractor, JointUNet2DModel, MultiscaleGaussian
from diffad.data import Sample
from diffad.imaging.preprocessing import resize_rgb, to_model_range
from diffad.scoring.config import DETAIL_TERMS
from diffad_training.components import build_calibration, build_discriminant, build_gaussian, build_multiscale
from diffad_training.config import TrainingConfig
from diffad_training.dataset import CachedDataset
from diffad_training.good_images import group_names
from diffusers import DDPMScheduler
from tqdm.auto import tqdm

BATCH_SIZE = 16
STATISTICS_IMAGES = 64  # from which the channels of further scales are standardised


@torch.no_grad()
def fit_pipeline(
    unet: JointUNet2DModel,
    scheduler: DDPMScheduler,
    extractor: FeatureExtractor,
    cached: CachedDataset,
    samples: Sequence[Sample],
    train_groups: Sequence[Sequence[int]],
    held_out_samples: Sequence[Sample],
    config: TrainingConfig,
) -> DiffADPipeline:
    """Fits the Gaussians on each category's training images and calibrates on the held-out ones, each streamed once.

    Args:
        samples: that `cached` is of.
        train_groups: for each category the indices of its training images, or tiles of them, in `cached`.
        held_out_samples: of all categories.
    """
    channels, device = extractor.config.channels, extractor.device
    pipe = DiffADPipeline(
        unet,
        scheduler,
        extractor,
        gaussian=build_gaussian(config, channels).to(device),
        residual_gaussian=build_gaussian(config, channels).to(device),
        calibration=build_calibration(config).to(device),
        discriminant=build_discriminant(config, channels),
        multiscale=(multiscale := build_multiscale(config, extractor)) and multiscale.to(device),
    )
    pooled = []
    for category, group in enumerate(train_groups):
        moments, residual_moments = pipe.gaussian.new_moments(), pipe.residual_gaussian.new_moments()
        of_batch = torch.tensor([category], device=device) if config.categories else None
        for start in tqdm(range(0, len(group), BATCH_SIZE), desc="fitting the Gaussians", mininterval=2, disable=None):
            batch = group[start : start + BATCH_SIZE]
            features = extractor.standardize(torch.from_numpy(cached.features[batch]).to(device).float())  # (B, D, h, w)
            images = to_model_range(torch.from_numpy(cached.images[batch]).to(device))  # (B, 3, S, S)
            pooled.append(features.mean(dim=(2, 3)).cpu())
            pipe.gaussian.accumulate(moments, features)
            pipe.residual_gaussian.accumulate(residual_moments, pipe.scorer.feature_residuals(images, of_batch))
        pipe.gaussian.fit(moments, category)
        pipe.residual_gaussian.fit(residual_moments, category)
    if pipe.multiscale is not None:
        fit_multiscale(pipe.multiscale, extractor, cached, samples, train_groups)
    if pipe.discriminant is not None:
        indices = [index for group in train_groups for index in group]
        pipe.discriminant.fit(torch.cat(pooled).numpy(), cached.categories[indices]).to(device)
    print(f"calibrating on {len(held_out_samples)} held-out good images", flush=True)
    categories = [sample.category for sample in held_out_samples] if config.categories else None
    images, groups = [sample.read for sample in held_out_samples], group_names(held_out_samples)
    pipe.calibrate(images, categories=categories, roi=config.roi, groups=groups)
    return pipe


def fit_multiscale(
    multiscale: MultiscaleGaussian,
    extractor: FeatureExtractor,
    cached: CachedDataset,
    samples: Sequence[Sample],
    train_groups: Sequence[Sequence[int]],
) -> None:
    """Fits the Gaussians of further scales; enlarged images are read from their files, once."""
    size, stride, scales = cached.images.shape[-1], extractor.config.stride, multiscale.config.scales

    def features(indices: Sequence[int]) -> dict[str, torch.Tensor]:
        images = to_model_range(torch.from_numpy(cached.images[indices]).to(extractor.device))
        of_scale = {"coarse": extractor.pyramid(images).coarse}
        if not set(DETAIL_TERMS).isdisjoint(scales):
            pixels = np.stack([resize_rgb(samples[cached.owners[i]].read(), (2 * size, 2 * size)) for i in indices])
            enlarged = to_model_range(torch.from_numpy(pixels).to(extractor.device))
            detail = extractor.pyramid(enlarged, grid=(size // stride, size // stride))
            of_scale |= {"detail": detail.fine, "coarse_detail": detail.coarse}
        return {name: of_scale[name] for name in scales}

    everything = [index for group in train_groups for index in group]
    chosen = np.unique(np.linspace(0, len(everything) - 1, min(STATISTICS_IMAGES, len(everything))).astype(int))
    first = list(_batches([everything[i] for i in chosen], features))
    for name in scales:
        getattr(multiscale, name).set_statistics(torch.cat([batch[name] for batch in first]))
    for category, group in enumerate(train_groups):
        moments = {name: getattr(multiscale, name).gaussian.new_moments() for name in scales}
        for batch in tqdm(_batches(group, features), desc="fitting further scales", mininterval=2, disable=None):
            for name in scales:
                getattr(multiscale, name).accumulate(moments[name], batch[name])
        for name in scales:
            getattr(multiscale, name).gaussian.fit(moments[name], category)


def _batches(indices: Sequence[int], features: Callable) -> Iterator[dict[str, torch.Tensor]]:
    return (features(indices[start : start + BATCH_SIZE]) for start in range(0, len(indices), BATCH_SIZE))
