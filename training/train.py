"""Trains diffad on images of good parts and saves a complete pipeline.

One process:       accelerate launch training/train.py --config cpu-small --data DATA --output_dir runs/model
Several GPUs:      accelerate launch --multi_gpu training/train.py --config paper --data DATA --pretrained_unet CHECKPOINT
Two CPU processes: accelerate launch --multi_gpu --num_processes 2 training/train.py --config cpu-small --data DATA
                   (without --multi_gpu accelerate starts a single process on a machine without GPUs)
Continue:          add --resume_from_checkpoint latest
One model of all:  add --categories "[screw, tile]": one class-conditional model of the folders DATA/screw and DATA/tile

DATA is a MVTec-layout folder, a folder of good images, or a `datasets` name or folder. Every setting of config.py can be
given as an option. All choices are made on held-out good images; no defective image is ever read.
"""

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffad import DiffADPipeline, FeatureExtractor, JointUNet2DModel
from diffad.data import DataError, Sample, category_samples, split_held_out, training_samples
from diffad.diffusion.chain import chain_step
from diffad.diffusion.losses import JointLoss, joint_loss
from diffad.diffusion.reverse_step import add_noise
from diffad.imaging.preprocessing import to_model_range
from diffad.imaging.reading import ImageError
from diffad.memory import keep_freed_memory, peak_memory_mib
from diffad_training.components import (
    build_calibration,
    build_discriminant,
    build_extractor,
    build_gaussian,
    build_scheduler,
    build_unet,
    choose_precision,
)
from diffad_training.config import TrainingConfig, parse_config, save_config, training_steps
from diffad_training.dataset import BalancedSampler, CachedDataset, augment, balanced_statistics, build_cache
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

VALIDATION_TIMESTEPS = (20, 201, 401)


def main(config: TrainingConfig) -> None:
    started = time.perf_counter()
    keep_freed_memory()
    accelerator = Accelerator(
        # Said outright, because several launched processes on a machine without GPU would otherwise each train alone.
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision=choose_precision(config),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / "logs")),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        # The main process fills the cache and fits the statistics alone; the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )
    if accelerator.device.type == "cpu":
        # `accelerate launch` limits every process to one thread unless it is told otherwise.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // accelerator.num_processes))
    set_seed(config.seed)
    output_dir = Path(config.output_dir)
    cache_dir = Path(config.cache_dir) if config.cache_dir else output_dir / "cache"

    # 1. Data: split, decode, extract. Bad input ends the run here.
    samples = category_samples(config.data, config.categories) if config.categories else training_samples(config.data)
    train_samples, held_out_samples = split_held_out(samples, config.held_out_fraction, config.seed)
    position = {sample.name: i for i, sample in enumerate(samples)}
    extractor = build_extractor(config).to(accelerator.device)
    scheduler = build_scheduler(config)
    unet = build_unet(config, extractor.config.channels)
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, output_dir / "training_config.json")
        build_cache(
            samples,
            extractor,
            config.resolution,
            cache_dir,
            short_side=config.short_side,
            tile_overlap=config.tile_overlap,
        )
    accelerator.wait_for_everyone()
    cached = CachedDataset(cache_dir)
    train_indices = cached.entries_of([position[sample.name] for sample in train_samples])
    held_out_indices = cached.entries_of([position[sample.name] for sample in held_out_samples])
    train_groups = [[i for i in train_indices if cached.categories[i] == label] for label in _classes(config)]
    extractor.set_statistics(*balanced_statistics(cached.features, train_groups))

    steps = training_steps(config, len(train_indices), accelerator.num_processes)
    config = dataclasses.replace(config, max_train_steps=steps)

    # 2. Optimization
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    ema.to(accelerator.device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    lr_scheduler = get_cosine_schedule_with_warmup(
        # accelerate steps the schedule once per process and update
        optimizer,
        config.lr_warmup_steps * accelerator.num_processes,
        config.max_train_steps * accelerator.num_processes,
    )
    train_loader = DataLoader(
        cached if config.categories else Subset(cached, train_indices),
        batch_size=config.train_batch_size,
        shuffle=None if config.categories else True,
        sampler=BalancedSampler(train_groups, config.seed) if config.categories else None,
        num_workers=config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    held_out_loader = DataLoader(Subset(cached, held_out_indices), batch_size=config.train_batch_size)
    unet, optimizer, lr_scheduler, train_loader, held_out_loader = accelerator.prepare(
        unet, optimizer, lr_scheduler, train_loader, held_out_loader
    )
    model = torch.compile(unet) if config.compile else unet
    accelerator.register_for_checkpointing(ema)
    if config.report_to:
        accelerator.init_trackers("diffad", config={"data": str(config.data), "seed": config.seed})

    steps_per_epoch = math.ceil(len(train_loader) / config.gradient_accumulation_steps)
    global_step = _resume(accelerator, config, output_dir)
    if accelerator.is_main_process:
        print(
            f"{len(train_samples)} images to train on, {len(held_out_samples)} held out"
            + (f", of {len(config.categories)} categories; " if config.categories else "; ")
            + (f"{len(train_indices)} and {len(held_out_indices)} tiles; " if config.short_side else "")
            + f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters; {accelerator.num_processes} process(es) on "
            f"{accelerator.device.type}, {accelerator.mixed_precision} precision",
            flush=True,
        )

    # 3. The loop
    progress = tqdm(
        total=config.max_train_steps,
        initial=global_step,
        desc="training",
        disable=not accelerator.is_main_process,
        mininterval=2,
    )
    epoch = global_step // steps_per_epoch
    skipped = (global_step % steps_per_epoch) * config.gradient_accumulation_steps
    loader = accelerator.skip_first_batches(train_loader, skipped) if skipped else train_loader
    generator = torch.Generator(accelerator.device)
    while global_step < config.max_train_steps:
        loader.set_epoch(epoch)
        for index, batch in enumerate(loader, start=skipped):
            # A pure function of seed, process and position in training: a resumed run draws what it would have drawn.
            stream = config.seed * accelerator.num_processes + accelerator.process_index
            generator.manual_seed((stream * 1_000_003 + epoch * len(train_loader) + index) % 2**32)
            with accelerator.accumulate(unet):
                images, features = _targets(batch, extractor, config.augmentations, generator)
                timesteps = torch.randint(0, config.max_timestep, (len(images),), generator=generator, device=images.device)
                noise = torch.randn(images.shape, generator=generator, device=images.device)
                loss = _loss(
                    model, scheduler, images, features, timesteps, noise, _categories(batch, config), config.feature_weight
                )
                accelerator.backward(loss.total)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            ema.step(unet.parameters())
            global_step += 1
            progress.update()
            if global_step % 10 == 0:
                values = _loss_values(loss, "train")
                progress.set_postfix({name.split("/")[1]: f"{value:.3f}" for name, value in values.items()})
                accelerator.log({**values, "learning_rate": lr_scheduler.get_last_lr()[0]}, step=global_step)
            if global_step % config.validation_steps == 0 or global_step == config.max_train_steps:
                values = validate(accelerator, model, unet, ema, scheduler, extractor, held_out_loader, config)
                accelerator.log(values, step=global_step)
                if accelerator.is_main_process:
                    progress.write(f"step {global_step}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
            if global_step % config.checkpointing_steps == 0:
                _checkpoint(accelerator, output_dir, global_step, config.checkpoints_total_limit)
            if global_step >= config.max_train_steps:
                break
        epoch, skipped, loader = epoch + 1, 0, train_loader
    progress.close()

    # 4. Fit what normal images look like and score, and save everything
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        ema.copy_to(unet.parameters())
        pipe = fit_pipeline(
            accelerator.unwrap_model(unet, keep_fp32_wrapper=False).eval(),
            scheduler,
            extractor,
            cached,
            train_groups,
            held_out_samples,
            config,
        )
        pipe.save_pretrained(output_dir)
        if config.cache_dir is None:
            del cached, train_loader, held_out_loader, loader
            shutil.rmtree(cache_dir)
        summary = {"seconds": time.perf_counter() - started, "peak_memory_mib": peak_memory_mib(), "steps": global_step}
        (output_dir / "training_summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(f"saved the pipeline to {output_dir} after {summary['seconds']:.0f} s")
    accelerator.end_training()


@torch.no_grad()
def validate(accelerator, model, unet, ema, scheduler, extractor, loader, config: TrainingConfig) -> dict[str, float]:
    """Mean losses of the averaged weights on the held-out good images at the scored timesteps, every image once.

    Noise is drawn from a fixed seed for each image, so that figures of different steps, runs and process counts compare.
    """
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    unet.eval()
    rows = []
    for batch in loader:
        images, features = _targets(batch, extractor)
        generator = torch.Generator().manual_seed(config.seed)
        noise = torch.randn(images.shape[1:], generator=generator).to(images).expand_as(images)
        losses = torch.zeros(len(images), 3, device=images.device)
        for t in VALIDATION_TIMESTEPS:
            step = chain_step(scheduler, torch.tensor([t])).to(images)
            noisy = add_noise(images, noise, step)
            output, predicted = model(noisy, t, _categories(batch, config), return_dict=False)
            for i in range(len(images)):
                one = slice(i, i + 1)
                loss = joint_loss(
                    images[one],
                    noisy[one],
                    noise[one],
                    features[one],
                    output[one],
                    predicted[one],
                    step,
                    prediction_type=scheduler.config.prediction_type,
                )
                losses[i] += torch.stack([loss.simple, loss.vlb, loss.feature]) / len(VALIDATION_TIMESTEPS)
        rows.append(accelerator.gather_for_metrics(losses))
    unet.train()
    ema.restore(unet.parameters())
    mean = torch.cat(rows).mean(dim=0).tolist()
    return dict(zip(("held_out/simple", "held_out/vlb", "held_out/feature"), mean))


def fit_pipeline(
    unet: JointUNet2DModel,
    scheduler: DDPMScheduler,
    extractor: FeatureExtractor,
    cached: CachedDataset,
    train_groups: list[list[int]],
    held_out_samples: list[Sample],
    config: TrainingConfig,
) -> DiffADPipeline:
    """Fits both Gaussians on each category's training images and calibrates on the held-out ones, each streamed once."""
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
    for label, group in enumerate(train_groups):
        moments, residual_moments = pipe.gaussian.new_moments(), pipe.residual_gaussian.new_moments()
        for start in tqdm(range(0, len(group), 16), desc="fitting the Gaussians", mininterval=2):
            batch = group[start : start + 16]
            features = extractor.standardize(torch.from_numpy(cached.features[batch]).to(device).float())
            pooled.append(features.mean(dim=(2, 3)).cpu())
            pipe.gaussian.accumulate(moments, features)
            with torch.no_grad():
                images = to_model_range(torch.from_numpy(cached.images[batch]).to(device))
                categories = torch.full((len(batch),), label, device=device) if config.categories else None
                pipe.residual_gaussian.accumulate(residual_moments, pipe.feature_residuals(images, categories))
        pipe.gaussian.fit(moments, label)
        pipe.residual_gaussian.fit(residual_moments, label)
    if config.categories:
        indices = [i for group in train_groups for i in group]
        pipe.discriminant.fit(torch.cat(pooled).numpy(), cached.categories[indices]).to(device)
    print(f"calibrating on {len(held_out_samples)} held-out good images", flush=True)
    categories = [sample.category for sample in held_out_samples] if config.categories else None
    pipe.calibrate([sample.read for sample in held_out_samples], categories=categories)
    return pipe


def _classes(config: TrainingConfig) -> range:
    return range(max(1, len(config.categories)))


def _categories(batch: dict, config: TrainingConfig) -> torch.Tensor | None:
    return batch["categories"] if config.categories else None


def _targets(
    batch: dict, extractor: FeatureExtractor, augmentations: Sequence[str] = (), generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [-1, 1] and their standardised features: from the cache, or computed where augmentation changed them."""
    if not augmentations:
        return to_model_range(batch["images"]), extractor.standardize(batch["features"].float())
    images = to_model_range(augment(batch["images"], augmentations, generator))
    with torch.no_grad():
        return images, extractor(images)


def _loss(model, scheduler, images, features, timesteps, noise, categories, feature_weight: float) -> JointLoss:
    step = chain_step(scheduler, timesteps).to(images)
    noisy = add_noise(images, noise, step)
    output, predicted_features = model(noisy, timesteps, categories, return_dict=False)
    return joint_loss(
        images,
        noisy,
        noise,
        features,
        output,
        predicted_features,
        step,
        feature_weight,
        scheduler.config.prediction_type,
    )


def _loss_values(loss: JointLoss, prefix: str) -> dict[str, float]:
    return {f"{prefix}/{name}": getattr(loss, name).item() for name in ("simple", "vlb", "feature")}


def _checkpoints(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def _checkpoint(accelerator: Accelerator, output_dir: Path, step: int, limit: int) -> None:
    folder = output_dir / f"checkpoint-{step}"
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        for old in _checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)


def _resume(accelerator: Accelerator, config: TrainingConfig, output_dir: Path) -> int:
    """Loads the wanted checkpoint, if any, and returns the number of finished steps."""
    if config.resume_from_checkpoint is None:
        return 0
    if config.resume_from_checkpoint == "latest":
        checkpoints = _checkpoints(output_dir)
        if not checkpoints:
            accelerator.print(f"no checkpoint in {output_dir}, starting anew")
            return 0
        folder = checkpoints[-1]
    else:
        folder = Path(config.resume_from_checkpoint)
        if not folder.is_dir():
            raise DataError(f"--resume_from_checkpoint {folder}: no such folder")
    accelerator.load_state(str(folder))
    accelerator.print(f"resumed from {folder}")
    return int(folder.name.split("-")[1])


if __name__ == "__main__":
    try:
        main(parse_config())
    except (DataError, ImageError) as error:
        sys.exit(f"error: {error}")
