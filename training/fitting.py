"""What a trained UNet is made a pipeline with: the Gaussians of good parts, the discriminant and the calibration."""

from collections.abc import Sequence

import torch
from diffad import DiffADPipeline, FeatureExtractor, JointUNet2DModel
from diffad.data import Sample
from diffad.imaging.preprocessing import to_model_range
from diffad_training.components import build_calibration, build_discriminant, build_gaussian
from diffad_training.config import TrainingConfig
from diffad_training.dataset import CachedDataset
from diffad_training.good_images import group_names
from diffusers import DDPMScheduler
from tqdm.auto import tqdm

BATCH_SIZE = 16


@torch.no_grad()
def fit_pipeline(
    unet: JointUNet2DModel,
    scheduler: DDPMScheduler,
    extractor: FeatureExtractor,
    cached: CachedDataset,
    train_groups: Sequence[Sequence[int]],
    held_out_samples: Sequence[Sample],
    config: TrainingConfig,
) -> DiffADPipeline:
    """Fits both Gaussians on each category's training images and calibrates on the held-out ones, each streamed once.

    Args:
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
    if pipe.discriminant is not None:
        indices = [index for group in train_groups for index in group]
        pipe.discriminant.fit(torch.cat(pooled).numpy(), cached.categories[indices]).to(device)
    print(f"calibrating on {len(held_out_samples)} held-out good images", flush=True)
    categories = [sample.category for sample in held_out_samples] if config.categories else None
    images, groups = [sample.read for sample in held_out_samples], group_names(held_out_samples)
    pipe.calibrate(images, categories=categories, roi=config.roi, groups=groups)
    return pipe
