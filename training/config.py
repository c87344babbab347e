"""Settings of a training run: a YAML preset, overridden by command-line options of the same names."""

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml

PRESETS = Path(__file__).parent / "configs"


@dataclass
class TrainingConfig:
    """Every setting of train.py. The presets in configs/ say which values belong together."""

    # data
    data: str = ""  # MVTec-layout folder, folder of good images, or `datasets` name or folder
    categories: list[str] = field(
        default_factory=list
    )  # folders in `data` to train one model of all of; empty is one model of `data`
    output_dir: str = "runs/model"
    cache_dir: str | None = None  # of decoded images and features; None is <output_dir>/cache, removed at the end
    resolution: int = 256  # pixels per side at which images are trained on and scored
    short_side: int | None = None  # scale images to so many pixels, keep their aspect, cut them into tiles of `resolution`
    tile_overlap: float = 0.25  # share of a tile that neighbours have in common, at least
    held_out_fraction: float = 0.15  # of the good images: validation, statistics and thresholds come from these
    augmentations: list[str] = field(default_factory=list)  # of hflip, vflip, rot90: only what leaves a part good
    num_workers: int = 0  # data loading processes; the cache makes 0 the fastest for most

    # feature extractor
    extractor: str = "lite0"  # lite0, lite1 or lite2 (offline), a timm name, or transformers:<name>
    levels: list[int] = field(default_factory=lambda: [2, 3])
    feature_stride: int = 8  # image pixels per feature position

    # joint UNet
    unet: dict = field(default_factory=dict)  # arguments of JointUNet2DModel
    prediction_type: str = "epsilon"  # what the UNet predicts: epsilon (the paper) or sample (better for a small one)
    # folder or Hub name of a UNet2DModel or JointUNet2DModel to start from; `unet` then only holds what differs from it
    pretrained_unet: str | None = None

    # Gaussian of normal features
    gaussian_dims: int | None = None  # channels used; None is all
    shared_gaussian: bool = False  # one Gaussian for all positions: textures, parts that lie anyhow
    regularization: float = 0.01

    # optimization
    max_train_steps: int = 1000
    max_train_epochs: int | None = None  # training ends after so many passes over the images, if that is earlier
    train_batch_size: int = 8  # per process
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    lr_warmup_steps: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.997
    feature_weight: float = 1.0
    max_timestep: int = 1000  # training draws t below it; scoring looks at 20, 201 and 401
    mixed_precision: str = "auto"  # auto, no, bf16, fp16
    compile: bool = False  # torch.compile the UNet
    seed: int = 0

    # scoring recipe stored with the pipeline: arguments of Calibration
    recipe: dict = field(default_factory=dict)

    # running
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | None = None  # a checkpoint folder, or "latest"
    validation_steps: int = 250
    report_to: str | None = "tensorboard"  # tracker of accelerate, or none

    def __post_init__(self):
        unknown = set(self.augmentations) - {"hflip", "vflip", "rot90"}
        if unknown:
            raise ValueError(f"unknown augmentations {sorted(unknown)}; there are hflip, vflip, rot90")
        if len(set(self.categories)) != len(self.categories) or len(self.categories) == 1:
            raise ValueError(f"categories must name at least two different folders in data, got {self.categories}")
        if self.prediction_type not in ("epsilon", "sample"):
            raise ValueError(f"prediction_type must be epsilon or sample, got {self.prediction_type!r}")
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction must lie between 0 and 1, got {self.held_out_fraction}")
        if self.short_side is not None:
            if self.short_side < self.resolution:
                raise ValueError(f"short_side must be at least the resolution {self.resolution}, got {self.short_side}")
            if not self.shared_gaussian:
                raise ValueError("short_side needs shared_gaussian: tiles from all over an image share one Gaussian")
        if not 0 <= self.tile_overlap < 1:
            raise ValueError(f"tile_overlap must lie in [0, 1), got {self.tile_overlap}")
        if self.report_to == "none":
            self.report_to = None


def training_steps(config: TrainingConfig, num_images: int, num_processes: int) -> int:
    """Optimizer steps of a run: `max_train_steps`, or as many as `max_train_epochs` passes over the images take."""
    if config.max_train_epochs is None:
        return config.max_train_steps
    images_per_step = config.train_batch_size * config.gradient_accumulation_steps * num_processes
    return min(config.max_train_steps, config.max_train_epochs * math.ceil(num_images / images_per_step))


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """Reads `--config <preset name or YAML file>` and the overriding options.

    Exits with a message naming the option when a value is missing or wrong.
    """
    parser = argparse.ArgumentParser(description="Train diffad on images of good parts.", allow_abbrev=False)
    parser.add_argument("--config", default="cpu-small", help="preset in training/configs, or a YAML file")
    for name in TrainingConfig.__dataclass_fields__:
        parser.add_argument(f"--{name}", help="see training/config.py")
    options = vars(parser.parse_args(arguments))
    try:
        return load_config(options.pop("config"), options)
    except ValueError as error:
        parser.error(str(error))


def load_config(preset: str, options: dict[str, str | None]) -> TrainingConfig:
    """A preset's settings (name in training/configs, or a YAML file), overridden by the options that are not None.

    Raises:
        ValueError: naming the preset or setting that is missing or wrong.
    """
    fields = {f.name: f for f in dataclasses.fields(TrainingConfig)}
    settings = _read_preset(preset)
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)} in the YAML file")
    for name, text in options.items():
        if text is not None:
            # YAML's scalar rules turn text into numbers, lists, booleans and null.
            try:
                settings[name] = text if fields[name].type is str else yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(f"--{name} {text}: not a value ({error})") from None
    if not settings.get("data"):
        raise ValueError("--data is missing: a folder of good images")
    return TrainingConfig(**{name: _convert(fields[name].type, value, name) for name, value in settings.items()})


def save_config(config: TrainingConfig, path: Path) -> None:
    """Writes all settings of a run as JSON, which YAML readers (and `--config`) accept."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def _read_preset(name: str) -> dict:
    path = Path(name) if Path(name).is_file() else PRESETS / f"{name}.yaml"
    if not path.is_file():
        presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ValueError(f"--config {name}: no such file, and no preset of that name ({presets})")
    return yaml.safe_load(path.read_text()) or {}


def _convert(kind, value, name: str):
    """Numbers that YAML reads as another type (1e-4 as text, 1 for 1.0), everything else unchanged."""
    if kind in (int, float) and not isinstance(value, bool):
        try:
            return kind(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}") from None
    if kind in (bool, dict) and not isinstance(value, kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value
