"""The losses of a batch: in training, and on the held-out images to validate."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from diffad import FeatureExtractor
from diffad.diffusion.denoiser import Denoiser
from diffad.diffusion.losses import JointLoss
from diffad.imaging.tensors import to_model_range
from diffad_training.aspect import square_crops
from diffad_training.config import SIDE_STEP, TrainingConfig
from diffad_training.corruption import corrupt
from diffad_training.dataset import augment

VALIDATION_TIMESTEPS = (20, 201, 401)
TERMS = ("simple", "vlb", "feature")

Batch = Mapping[str, torch.Tensor]  # of CachedDataset


def training_loss(
    denoiser: Denoiser,
    extractor: FeatureExtractor,
    batch: Batch,
    config: TrainingConfig,
    generator: torch.Generator | None = None,
) -> JointLoss:
    """Losses `(B,)` of a batch at random timesteps under random noise; all that is random is drawn from the generator."""
    images, features = training_targets(batch, extractor, config.augmentations, generator)  # (B, 3, H, W), (B, D, h, w)
    images, features = square_crops(images, features, SIDE_STEP, generator)  # (B, 3, S, S), (B, D, s, s)
    timesteps = torch.randint(0, config.max_timestep, (len(images),), generator=generator, device=images.device)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    seen = corrupt(images, config.corrupted_share, generator) if config.corrupted_share else None
    return denoiser.joint_loss(images, noise, timesteps, features, categories_of(batch, config), config.feature_weight, seen)


@torch.no_grad()
def validate(
    accelerator: Accelerator,
    denoiser: Denoiser,
    extractor: FeatureExtractor,
    batches: Iterable[Batch],
    config: TrainingConfig,
) -> dict[str, float]:
    """Mean losses of the denoiser on the held-out good images at the scored timesteps, every image once.

    Noise is drawn from a fixed seed, the same for each image, so that figures of different steps, runs and process counts
    compare.
    """
    of_images = []
    for batch in batches:
        images, features = training_targets(batch, extractor)
        noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(config.seed))
        noise = noise.to(images.device).expand_as(images)
        losses = images.new_zeros(len(images), len(TERMS))
        for t in VALIDATION_TIMESTEPS:
            timesteps = torch.full((len(images),), t, device=images.device)
            loss = denoiser.joint_loss(images, noise, timesteps, features, categories_of(batch, config))
            losses += torch.stack([getattr(loss, term) for term in TERMS], dim=1) / len(VALIDATION_TIMESTEPS)
        of_images.append(accelerator.gather_for_metrics(losses))
    means = torch.cat(of_images).mean(dim=0).tolist()
    return {f"held_out/{term}": mean for term, mean in zip(TERMS, means, strict=True)}


def loss_values(loss: JointLoss) -> dict[str, float]:
    """The mean of each term over the batch, for a tracker; waits for the device."""
    means = torch.stack([getattr(loss, term).detach().mean() for term in TERMS]).tolist()
    return {f"train/{term}": mean for term, mean in zip(TERMS, means, strict=True)}


def training_targets(
    batch: Batch, extractor: FeatureExtractor, augmentations: Sequence[str] = (), generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [-1, 1] and their standardised features: from the cache, or computed where augmentation changed them."""
    if not augmentations:
        return to_model_range(batch["images"]), extractor.standardize(batch["features"].float())
    images = to_model_range(augment(batch["images"], augmentations, generator))
    with torch.no_grad():
        return images, extractor(images)


def categories_of(batch: Batch, config: TrainingConfig) -> torch.Tensor | None:
    return batch["categories"] if config.categories else None
