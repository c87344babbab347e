"""Fits everything but the UNet of a trained model anew: Gaussians, score and thresholds, with present defaults or others.

    python training/refit.py runs/part --output_dir runs/part-refit
    python training/refit.py runs/part --output_dir runs/part-paper --score paper
    python training/refit.py runs/part --output_dir runs/part-so-far --checkpoint latest

It takes a minute or two where training takes many, and brings a model of an earlier release to the present score. The images
and the split are those that the model was trained with. Any setting of config.py may be given that doesn't change the UNet.
With `--checkpoint` a training that is not finished, or still runs, gives a model of its averaged weights so far.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path

import torch
from diffad import DiffADPipeline
from diffad.data import DataError
from diffad.system.memory import keep_freed_memory, peak_memory_mib
from diffad_training.checkpoints import averaged_weights
from diffad_training.components import build_extractor, check_score
from diffad_training.config import TrainingConfig, load_config, option_names, spell_out_switches
from diffad_training.dataset import CachedDataset, build_cache
from diffad_training.fitting import GoodParts, fit_pipeline
from diffad_training.good_images import good_samples, read_held_out, split_samples
from diffad_training.model_files import SUMMARY, save_model

# Settings that the UNet was trained with.
OF_THE_UNET = (
    *("resolution", "aspect_ratio", "short_side", "tile_overlap"),
    *("extractor", "levels", "feature_stride", "unet", "prediction_type"),
)


def refit(model: Path, config: TrainingConfig, checkpoint: str | None = None) -> DiffADPipeline:
    """Refits a trained model with the settings of a run, saves it to `output_dir` and returns it.

    Args:
        checkpoint: folder of the model's own training whose averaged weights the UNet takes, or `latest`, the newest complete
            one; None keeps the model's.

    Raises:
        DataError: if the model's record of held-out images, or its images, are missing, its diffusion model is not trained, the
            checkpoint is missing, damaged or another run's, or the folder is in use.
        SettingsError: if a setting can't be used.
    """
    started, output = time.perf_counter(), Path(config.output_dir)
    if output.exists() and not config.overwrite:
        raise DataError(f"{output}: exists; name another --output_dir, or --overwrite it")
    trained = DiffADPipeline.from_pretrained(model)
    if checkpoint is not None:
        trained.unet.load_state_dict(averaged_weights(checkpoint, model))
    elif trained.residual_gaussian is None:
        raise DataError(f"{model}: its diffusion model is not trained; let its training end, or give its --checkpoint latest")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = build_extractor(config)
    check_score(config, trained.scheduler, extractor.config.channels)
    extractor.set_statistics(trained.feature_extractor.feature_mean, trained.feature_extractor.feature_std)
    extractor.to(device)
    samples = good_samples(config)
    train_samples, held_out_samples = split_samples(samples, config, read_held_out(model))
    cache_dir = Path(config.cache_dir) if config.cache_dir else output.with_name(output.name + ".cache")
    try:
        tiles = {"short_side": config.short_side, "tile_overlap": config.tile_overlap}
        build_cache(samples, extractor, config.image_size, cache_dir, **tiles)
        cached = CachedDataset(cache_dir)
        place = {sample.name: i for i, sample in enumerate(samples)}
        entries = cached.entries_of([place[sample.name] for sample in train_samples])
        groups = [[i for i in entries if cached.categories[i] == c] for c in range(max(1, len(config.categories)))]
        unet = trained.unet.to(device)
        data = GoodParts(cached, samples, groups, held_out_samples)
        fitted = fit_pipeline(unet, trained.scheduler, extractor, data, config)
    finally:
        if config.cache_dir is None:
            shutil.rmtree(cache_dir, ignore_errors=True)
    # Of training, where the model has it; what this took besides.
    summary = json.loads((model / SUMMARY).read_text()) if (model / SUMMARY).is_file() else {}
    summary.pop("map_choice", None)  # saving adds that of this fit, where there is one
    summary |= {"refit_seconds": time.perf_counter() - started, "refit_peak_memory_mib": peak_memory_mib()}
    save_model(fitted, output, dataclasses.replace(config, overwrite=False), held_out_samples, summary)
    print(f"saved the pipeline to {output} after {summary['refit_seconds']:.0f} s")
    return fitted.pipe


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    for name in option_names():
        if name not in OF_THE_UNET:
            parser.add_argument(f"--{name}", required=name == "output_dir", help="see training/config.py")
    parser.add_argument("--checkpoint", help="checkpoint of the model's own training that the UNet is taken from, or latest")
    options = vars(parser.parse_args(spell_out_switches(sys.argv[1:])))
    model, checkpoint = options.pop("model"), options.pop("checkpoint")
    try:
        config = load_config(str(model / "training_config.json"), {**options, "resume_from_checkpoint": "null"})
        refit(model, config, checkpoint)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
