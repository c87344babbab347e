"""Trains diffad on images of good parts and saves a complete pipeline.

One process:       accelerate launch training/train.py --config cpu-small --data DATA --output_dir runs/model
Several GPUs:      accelerate launch --multi_gpu training/train.py --config paper --data DATA --pretrained_unet CHECKPOINT
Two CPU processes: accelerate launch --multi_gpu --num_processes 2 training/train.py --config cpu-small --data DATA
                   (without --multi_gpu accelerate starts a single process on a machine without GPUs)
Several machines:  add --num_machines 2 --machine_rank 0 (1 on the other) --main_process_ip HOST --main_process_port 29500;
                   --num_processes counts those of all machines, which see one --output_dir
Continue:          add --resume_from_checkpoint latest
One model of all:  add --categories "[screw, tile]": one class-conditional model of the folders DATA/screw and DATA/tile

DATA is a MVTec-layout folder, a folder of good images, or a `datasets` name or folder. Every setting of config.py can be
given as an option. All choices are made on held-out good images; no defective image is ever read.

Two processes train as one does that accumulates two batches: the same images under the same noise in every step.
"""

import dataclasses
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffad import FeatureExtractor, JointUNet2DModel
from diffad.data import DataError, Sample
from diffad.diffusion.denoiser import Denoiser
from diffad.scoring.profiles import GAUSSIAN
from diffad.system.disk_space import DiskFullError
from diffad.system.memory import keep_freed_memory, peak_memory_mib
from diffad_training.aspect import with_aspect_ratio
from diffad_training.batch_losses import loss_values, training_loss, validate
from diffad_training.checkpoints import find_checkpoint, load_checkpoint, remove_checkpoints, save_checkpoint
from diffad_training.components import build_extractor, build_scheduler, build_unet, check_score, choose_precision
from diffad_training.config import TrainingConfig, parse_config, training_steps
from diffad_training.dataset import BalancedSampler, CachedDataset, balanced_statistics, build_cache, cache_mark
from diffad_training.fitting import FittedModel, GoodParts, fit_first_pipeline, fit_pipeline
from diffad_training.good_images import check_region, excluded_names, good_samples, split_samples
from diffad_training.interruption import Interruption, ignore_interruption
from diffad_training.model_files import save_model
from diffad_training.optimizers import build_optimizer
from diffad_training.progress import LOG_STEPS, FiniteLoss, ProgressBar, Throughput
from diffad_training.run_folder import Fingerprint, RunFolder
from diffad_training.training_outliers import outlier_note, training_outliers
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Subset


def main(config: TrainingConfig) -> None:
    """Trains, fits, calibrates and saves a pipeline; goes on where an interrupted run was, if the settings say so.

    Raises:
        DataError, ImageError, SettingsError: if data, output folder, checkpoint or a setting can't be used, before training.
        DiskFullError: naming what has no room.
        TrainingError: if the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    keep_freed_memory()
    accelerator = build_accelerator(config)
    set_seed(config.seed)
    # What a setting or the data makes impossible is refused before the folder is touched.
    config = with_aspect_ratio(config)
    if not config.is_square:
        height, width = config.image_size
        accelerator.print(f"images keep their aspect: the model sees {width} x {height} pixels (width x height)", flush=True)
    extractor, scheduler = build_extractor(config).to(accelerator.device), build_scheduler(config)
    unet = build_unet(config, extractor.config.channels)
    check_score(config, scheduler, extractor.config.channels)
    samples = good_samples(config)
    check_region(config.roi, samples)
    folder = RunFolder(Path(config.output_dir))
    with folder.lock() if accelerator.is_main_process else nullcontext():
        run(config, accelerator, folder, samples, extractor, scheduler, unet)
    accelerator.end_training()


def run(
    config: TrainingConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    samples: Sequence[Sample],
    extractor: FeatureExtractor,
    scheduler: DDPMScheduler,
    unet: JointUNet2DModel,
) -> None:
    """One run in a folder that is its own."""
    started = time.perf_counter()
    main_process, device = accelerator.is_main_process, accelerator.device

    # 1. Which run it is: a new one, or one that goes on from a checkpoint
    accelerator.wait_for_everyone()  # for the folder to be locked
    now = Fingerprint.of_settings(config, accelerator.num_processes)
    is_finished = not config.overwrite and folder.check_free_for(now, goes_on=config.resume_from_checkpoint is not None)
    checkpoint, notes = (None, []) if is_finished else find_checkpoint(config.resume_from_checkpoint, folder)
    check_shared(accelerator, folder.path, -1 if is_finished else checkpoint.step if checkpoint else 0)
    if is_finished:
        accelerator.print(f"{folder.path}: this run is finished; --overwrite trains anew")
        clean_up(config, accelerator, folder)
        return
    for note in notes:
        accelerator.print(note, flush=True)
    if checkpoint and (difference := checkpoint.fingerprint.difference_of_settings(now)):
        raise DataError(f"{checkpoint.folder}: belongs to another run ({difference}); its own settings go on with it")

    # 2. Data: split, decode, extract. Bad input ends the run here
    train_samples, held_out_samples = split_samples(samples, config, checkpoint and checkpoint.fingerprint.held_out)
    cache_dir = Path(config.cache_dir) if config.cache_dir else folder.path / "cache"
    if main_process:
        tiles = {"short_side": config.short_side, "tile_overlap": config.tile_overlap}
        build_cache(samples, extractor, config.image_size, cache_dir, **tiles)
    accelerator.wait_for_everyone()
    check_shared(accelerator, cache_dir, cache_mark(cache_dir))
    cached = CachedDataset(cache_dir)
    now = dataclasses.replace(now, images=cached.digest, held_out=[sample.name for sample in held_out_samples])
    if checkpoint and (difference := checkpoint.fingerprint.difference(now)):
        raise DataError(f"{checkpoint.folder}: belongs to another run ({difference})")
    if main_process:
        if config.overwrite:
            folder.clear()
        folder.record(now, is_finished=False)
    place = {sample.name: i for i, sample in enumerate(samples)}
    train_indices = cached.entries_of([place[sample.name] for sample in train_samples])
    held_out_indices = cached.entries_of([place[sample.name] for sample in held_out_samples])
    categories = range(max(1, len(config.categories)))
    train_groups = [[i for i in train_indices if cached.categories[i] == category] for category in categories]
    extractor.set_statistics(*balanced_statistics(cached.features, train_groups))
    outliers = training_outliers(cached, train_groups, extractor.feature_mean.cpu(), extractor.feature_std.cpu(), config)
    of_outliers = [samples[cached.owners[i]] for i in outliers]
    if outliers:
        accelerator.print(outlier_note(of_outliers, len(train_indices), config), flush=True)
    if outliers and config.robust:
        train_groups = [[i for i in group if i not in outliers] for group in train_groups]
        train_indices = [i for i in train_indices if i not in outliers]
        extractor.set_statistics(*balanced_statistics(cached.features, train_groups))
    about_data = {"excluded": excluded_names(config), "outliers": [sample.name for sample in of_outliers]}
    good_parts = GoodParts(cached, samples, train_groups, held_out_samples)

    # 3. A first model, which needs no diffusion model; a run that goes on has it, and a finished one is not replaced by it
    is_first_all = config.profile == GAUSSIAN
    wants_first = config.has_gaussian_profile and checkpoint is None and not folder.has_finished_model()
    if main_process and (is_first_all or wants_first):
        fitted = fit_first_pipeline(unet.to(device), scheduler, extractor, good_parts, config)
        summary = save(fitted, folder, config, held_out_samples, about_data, started, steps=0, is_finished=is_first_all)
        model = "the pipeline" if is_first_all else "a first model (profile gaussian)"
        goes_on = "" if is_first_all else "; training goes on"
        print(f"saved {model} to {folder.path} after {summary['seconds']:.0f} s{goes_on}", flush=True)
        del fitted
    if is_first_all:
        if main_process:
            folder.record(now, is_finished=True)
        del cached, good_parts  # Windows removes no file that is mapped
        clean_up(config, accelerator, folder)
        return

    # 4. Optimization
    steps = training_steps(config, len(train_indices), accelerator.num_processes)
    names = [name for name, _ in unet.named_parameters()]
    precision = accelerator.mixed_precision
    optimizer = build_optimizer(config.optimizer, unet, config.learning_rate, config.weight_decay, precision)
    # accelerate steps the schedule once per process and update
    warmup = config.lr_warmup_steps * accelerator.num_processes
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps * accelerator.num_processes)
    train_loader = training_loader(config, cached, train_groups, device)
    held_out_loader = DataLoader(Subset(cached, held_out_indices), batch_size=config.train_batch_size)
    unet, optimizer, lr_scheduler, train_loader, held_out_loader = accelerator.prepare(
        unet, optimizer, lr_scheduler, train_loader, held_out_loader
    )
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    denoiser = Denoiser(torch.compile(unet) if config.compile else unet, scheduler, device=device)
    if config.report_to:
        accelerator.init_trackers("diffad", config={"data": str(config.data), "seed": config.seed})
    if checkpoint:
        load_checkpoint(accelerator, ema, names, checkpoint)
    step = checkpoint.step if checkpoint else 0
    saved_at = step
    accelerator.print(
        f"{len(train_samples)} images to train on, {len(held_out_samples)} held out"
        + (f", of {len(config.categories)} categories; " if config.categories else "; ")
        + (f"{len(train_indices)} and {len(held_out_indices)} tiles; " if config.short_side else "")
        + f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters; {accelerator.num_processes} process(es) on "
        f"{device.type}, {accelerator.mixed_precision} precision",
        flush=True,
    )

    # 5. The loop
    accumulated = config.gradient_accumulation_steps
    throughput = Throughput(config.train_batch_size * accumulated * accelerator.num_processes)
    finite = FiniteLoss(device)
    steps_per_epoch = math.ceil(len(train_loader) / accumulated)
    epoch, skipped = step // steps_per_epoch, step % steps_per_epoch * accumulated
    loader = accelerator.skip_first_batches(train_loader, skipped) if skipped else train_loader
    with ProgressBar(steps, step, main_process) as progress, Interruption(accelerator) as interruption:
        is_interrupted = False
        throughput.restart(step)
        while step < steps and not is_interrupted:
            for each in (train_loader, loader):  # a loader that skips batches does not tell the sampler in every accelerate
                each.set_epoch(epoch)
            for index, batch in enumerate(loader, start=skipped):
                # All that is random follows from the seed and the batch's place in training, whichever process has it: a
                # resumed run draws what it would have drawn, dropout included.
                position = (epoch * len(train_loader) + index) * accelerator.num_processes + accelerator.process_index
                torch.manual_seed((config.seed * 1_000_003 + position) % 2**32)
                with accelerator.accumulate(unet):
                    loss = training_loss(denoiser, extractor, batch, config)
                    accelerator.backward(loss.total)
                    finite.note(loss.total, step + 1)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
                    optimizer.step()
                    lr_scheduler.step()
                    optimizer.zero_grad()
                if not accelerator.sync_gradients:
                    continue
                ema.step(unet.parameters())
                step += 1
                progress.update()

                # Nothing above waits for the device; what does comes every few steps.
                is_log_step, is_last = step % LOG_STEPS == 0, step == steps
                if is_log_step or is_last:
                    finite.check(saved_at)
                    speed = throughput.lap(step)
                if is_log_step:
                    values = loss_values(loss)
                    progress.show(values, speed)
                    accelerator.log({**values, **speed, "learning_rate": lr_scheduler.get_last_lr()[0]}, step=step)
                if step % config.validation_steps == 0 or is_last:
                    with averaged_weights(ema, unet):
                        values = validate(accelerator, denoiser, extractor, held_out_loader, config)
                    accelerator.log(values, step=step)
                    progress.write(step, values, throughput.latest)
                    throughput.restart(step)
                is_interrupted = interruption.agreed(ask_others=is_log_step)
                # Also at the end, so that a kill in fitting costs no training.
                if step % config.checkpointing_steps == 0 or is_last or is_interrupted:
                    finite.check(saved_at)
                    try:
                        save_checkpoint(accelerator, ema, names, folder, step, now)
                    except DiskFullError as error:
                        # The last checkpoint is not worth the training: the model itself is a quarter of its size.
                        if not is_last or accelerator.num_processes > 1:
                            raise
                        print(f"no last checkpoint: {error}", flush=True)
                    if main_process:
                        remove_checkpoints(folder, kept=config.checkpoints_total_limit)
                    saved_at = step
                    throughput.restart(step)
                if is_last or is_interrupted:
                    break
            epoch, skipped, loader = epoch + 1, 0, train_loader
    if is_interrupted:
        accelerator.print(f"interrupted: saved step {step} of {steps}; --resume_from_checkpoint latest goes on", flush=True)
        raise KeyboardInterrupt

    # 6. What good images look like and score; everything is saved together
    accelerator.wait_for_everyone()
    if main_process:
        ema.copy_to(unet.parameters())
        trained = accelerator.unwrap_model(unet, keep_fp32_wrapper=False).eval()
        fitted = fit_pipeline(trained, scheduler, extractor, good_parts, config)
        settings = dataclasses.replace(config, max_train_steps=steps)
        summary = save(fitted, folder, settings, held_out_samples, about_data, started, steps=step, is_finished=True)
        folder.record(now, is_finished=True)
        print(f"saved the pipeline to {folder.path} after {summary['seconds']:.0f} s")
        del cached, good_parts, train_loader, held_out_loader, loader  # Windows removes no file that is mapped
        clean_up(config, accelerator, folder)


def save(
    fitted: FittedModel,
    folder: RunFolder,
    config: TrainingConfig,
    held_out_samples: Sequence[Sample],
    about_data: Mapping[str, object],
    started: float,
    steps: int,
    is_finished: bool,
) -> dict[str, object]:
    """Saves a model with a summary of the training so far, and returns that."""
    seconds = time.perf_counter() - started
    summary = {"finished": is_finished, "seconds": seconds, "peak_memory_mib": peak_memory_mib(), "steps": steps}
    summary |= about_data
    save_model(fitted, folder.path, dataclasses.replace(config, overwrite=False), held_out_samples, summary)
    return summary


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """Devices, processes and precision; on CPUs every process gets its share of the cores."""
    has_cuda = torch.cuda.is_available()
    accelerator = Accelerator(
        # Said outright, because several launched processes on a machine without GPU would otherwise each train alone.
        cpu=not (has_cuda or torch.backends.mps.is_available()),
        mixed_precision=choose_precision(config),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / "logs")),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed, non_blocking=has_cuda),
        # The main process fills the cache and fits the statistics alone; the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )
    if accelerator.device.type == "cpu":
        # `accelerate launch` limits every process to one thread unless it is told otherwise.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(max(1, cores // on_this_machine))
    return accelerator


def check_shared(accelerator: Accelerator, folder: Path, mark: int) -> None:
    """Raises DataError in every process unless all of them have the same mark of what they see in a folder."""
    marks = accelerator.gather(torch.tensor([mark], device=accelerator.device))
    if not (marks == marks[0]).all():
        raise DataError(
            f"{folder}: not all machines see the same files there; put --output_dir on a file system that all of them share"
        )


def training_loader(
    config: TrainingConfig, cached: CachedDataset, train_groups: Sequence[Sequence[int]], device: torch.device
) -> DataLoader:
    """Batches of the training images in random order; of several categories every one is seen equally often."""
    return DataLoader(
        cached if config.categories else Subset(cached, train_groups[0]),
        batch_size=config.train_batch_size,
        shuffle=None if config.categories else True,
        sampler=BalancedSampler(train_groups, config.seed) if config.categories else None,
        num_workers=config.num_workers,
        worker_init_fn=ignore_interruption,
        pin_memory=device.type == "cuda",
    )


@contextmanager
def averaged_weights(ema: EMAModel, unet: torch.nn.Module) -> Iterator[None]:
    """The UNet in evaluation mode with its averaged weights while the block runs."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    unet.eval()
    yield
    unet.train()
    ema.restore(unet.parameters())


def clean_up(config: TrainingConfig, accelerator: Accelerator, folder: RunFolder) -> None:
    """Removes what only training needs from the folder of a finished run."""
    if accelerator.is_main_process:
        if not config.keep_checkpoints:
            remove_checkpoints(folder)
        if config.cache_dir is None:
            shutil.rmtree(folder.path / "cache", ignore_errors=True)


if __name__ == "__main__":
    try:
        main(parse_config())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
