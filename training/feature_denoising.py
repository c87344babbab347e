"""Trains the denoiser of features on the features of good images that training has extracted."""

from collections.abc import Sequence

import torch
from diffad import FeatureDenoiser, FeatureExtractor
from diffad.diffusion.chain import ReverseChain
from diffad.diffusion.losses import squared_error
from diffad.diffusion.reverse_step import add_noise
from diffad.imaging.tensors import to_model_range
from diffad_training.batch_losses import categories_of, training_targets
from diffad_training.components import choose_precision
from diffad_training.config import TrainingConfig
from diffad_training.dataset import BalancedSampler, CachedDataset
from diffad_training.optimizers import build_optimizer
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

LEARNING_RATES = {"adamw": 1e-3, "muon": 2e-3}
WARMUP_STEPS = 50
EMA_DECAY = 0.995
STATISTICS_IMAGES = 64  # of each category, from which colours are standardised


def train_feature_denoiser(
    denoiser: FeatureDenoiser,
    scheduler: DDPMScheduler,
    extractor: FeatureExtractor,
    cached: CachedDataset,
    train_groups: Sequence[Sequence[int]],
    config: TrainingConfig,
    steps: int,
) -> None:
    """Trains the network to rebuild features and thumbnails of good images from noisy ones at all timesteps of the chain.

    All that is random follows from the seed. Images of several categories are seen equally often.

    Args:
        train_groups: for each category the indices of its training images in `cached`.
        steps: updates of `train_batch_size` images.
    """
    device = extractor.device
    chain, timesteps_of_chain = ReverseChain(scheduler, device=device), scheduler.config.num_train_timesteps
    generator = torch.Generator(device).manual_seed(config.seed)
    sampler = BalancedSampler(train_groups, config.seed)
    loader = DataLoader(cached, batch_size=config.train_batch_size, sampler=sampler)
    precision = choose_precision(config)
    learning_rate = LEARNING_RATES[config.optimizer]
    optimizer = build_optimizer(config.optimizer, denoiser, learning_rate, config.weight_decay, precision)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(WARMUP_STEPS, steps // 4), steps)
    ema = EMAModel(denoiser.parameters(), decay=EMA_DECAY, use_ema_warmup=True, power=0.75, foreach=True)
    denoiser.set_pixel_statistics(*_pixel_statistics(cached, train_groups))
    in_bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    denoiser.train()
    step, epoch = 0, 0
    with tqdm(total=steps, desc="training the feature denoiser", mininterval=2, disable=None) as progress:
        while step < steps:
            sampler.set_epoch(epoch)
            for batch in loader:
                batch = {name: values.to(device) for name, values in batch.items()}
                images, features = training_targets(batch, extractor, config.augmentations, generator)
                clean = denoiser.clean(features, images)  # (B, C, h, w)
                timesteps = torch.randint(0, timesteps_of_chain, (len(clean),), generator=generator, device=device)
                noise = torch.randn(clean.shape, generator=generator, device=device)
                noisy = add_noise(clean, noise, chain.step(timesteps))
                category = categories_of(batch, config)
                with torch.enable_grad(), in_bf16:
                    # Not called: a call keeps the network in float32 whatever the autocast
                    predicted = denoiser.forward(noisy, timesteps, category)
                    loss = squared_error(predicted.float(), clean).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(denoiser.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                ema.step(denoiser.parameters())
                step += 1
                progress.update()
                if step == steps:
                    break
            epoch += 1
    ema.copy_to(denoiser.parameters())
    denoiser.eval()


def _pixel_statistics(cached: CachedDataset, train_groups: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation `(3,)` of the colours in [-1, 1] of some training images."""
    indices = [i for group in train_groups for i in group[:: max(1, len(group) // STATISTICS_IMAGES)]]
    pixels = to_model_range(torch.from_numpy(cached.images[indices]))
    return pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
