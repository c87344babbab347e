"""Settings of a training run: a YAML preset, overridden by command-line options of the same names."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from diffad.deprecation import with_present_names
from diffad.scoring.config import SCALE_TERMS, ScoreConfig
from diffad.scoring.presets import SCORES, score_settings
from diffad.scoring.profiles import BALANCED, DEFAULT_PROFILES, GAUSSIAN, PROFILES, profile_settings
from diffad.system.atomic import write_text
from diffad_training.conversion import SettingsError, as_list, converted, parsed

PRESETS = Path(__file__).parent / "configs"
# Present names of settings as diffad 0.1 called them, in files and as options.
FORMER_NAMES = {"position_free": "shared_gaussian", "recipe": "score"}

CHOICES = {
    "augmentations": ("hflip", "vflip", "rot90"),
    "prediction_type": ("epsilon", "sample"),
    "mixed_precision": ("auto", "no", "bf16", "fp16"),
    "optimizer": ("adamw", "muon"),
    "profile": (BALANCED, GAUSSIAN),
    "profiles": tuple(PROFILES),
}
# The lowest value of every number, and those that must lie above a bound or below one.
AT_LEAST = {
    "resolution": 8,
    "short_side": 8,
    "tile_overlap": 0,
    "num_workers": 0,
    "levels": 0,
    "feature_stride": 1,
    "gaussian_dims": 1,
    "max_train_steps": 1,
    "max_train_epochs": 1,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "lr_warmup_steps": 0,
    "weight_decay": 0,
    "ema_decay": 0,
    "feature_weight": 0,
    "corrupted_share": 0,
    "max_timestep": 2,
    "feature_denoiser_steps": 1,
    "references": 0,
    "seed": 0,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 1,
    "validation_steps": 1,
}
ABOVE = {"held_out_fraction": 0, "regularization": 0, "max_grad_norm": 0}
BELOW = {"held_out_fraction": 1, "tile_overlap": 1, "ema_decay": 1}
SIDE_STEP = 32  # pixels, of which the longer side is a multiple
AUTO = "auto"
LARGEST_RATIO = 4.0  # of long images, width / height or its inverse: time and memory grow with it
NOISE_LEVELS = 1000  # of the chain that components.py builds
YAML_BOOLEANS = ("true", "false", "yes", "no", "on", "off")
# Settings of the score that are settings of the run, too.
SHARED_WITH_SCORE = ("short_side", "tile_overlap", "seed")


@dataclass
class TrainingConfig:
    """Every setting of train.py. The presets in configs/ say which values belong together.

    Raises:
        SettingsError: naming the setting that is wrong.
    """

    # data
    data: str = ""  # MVTec-layout folder, folder of good images, or `datasets` name or folder
    categories: list[str] = field(default_factory=list)  # folders in `data` that one model is of; empty is `data` itself
    all_good: bool = False  # the subfolders of a plain folder all hold good images: days or lots, not kinds of parts
    exclude: str | None = None  # list that `diffad audit` wrote: its images with a reason are neither trained on nor held out
    robust: bool = False  # leave out training images that are unlike all others, by a rule; for folders nobody has looked at
    roi: str | None = None  # mask file of the region of interest (white is inside), for parts that lie alike in all images
    output_dir: str = "runs/model"
    overwrite: bool = False  # take the place of another run or model in output_dir
    cache_dir: str | None = None  # of decoded images and features; None is <output_dir>/cache, removed at the end
    resolution: int = 256  # pixels of the shorter side at which images are trained on and scored
    # width / height at which they are; 1 squeezes them into squares, auto keeps the aspect of long images that are alike
    aspect_ratio: float | str = 1.0
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

    # denoiser of the features alone, trained after the UNet where a score or profile asks for it
    feature_denoiser: dict = field(default_factory=dict)  # arguments of FeatureDenoiser
    feature_denoiser_steps: int = 800  # of train_batch_size images; max_train_epochs counts here, too

    # Gaussian of the features of good parts
    gaussian_dims: int | None = None  # channels used; None is all
    shared_gaussian: bool = False  # one Gaussian for all positions: textures, unaligned parts
    regularization: float = 0.5

    # optimization
    max_train_steps: int = 1000
    max_train_epochs: int | None = None  # training ends after so many passes over the images, if that is earlier
    train_batch_size: int = 8  # per process
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"  # adamw (the paper's Adam with weight decay) or muon, which needs fewer steps
    learning_rate: float = 1e-4
    lr_warmup_steps: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.997
    feature_weight: float = 1.0
    # of the training images that hold something foreign under the noise, which is to be removed; tried with `sample` only
    corrupted_share: float = 0.0
    max_timestep: int = NOISE_LEVELS  # training draws t below it; scoring looks at 20, 201 and 401
    mixed_precision: str = "auto"  # auto, no, bf16, fp16
    compile: bool = False  # torch.compile the UNet
    seed: int = 0

    # how images are scored, stored with the pipeline: settings of ScoreConfig but short_side, tile_overlap and seed
    # in place of the default's, or the name of a score: default or paper
    score: dict | str = field(default_factory=dict)

    # ways of scoring that are calibrated at the end; balanced always is, and scores without a verdict have none beside it
    profiles: list[str] = field(default_factory=lambda: list(DEFAULT_PROFILES))
    profile: str = BALANCED  # what the model is for; gaussian ends training after its first pass over the images
    references: int = 48  # images of good parts, or tiles, that the model keeps for repair, at most; 0 keeps none
    moments: bool | None = None  # kept beside the model for `diffad update`; null keeps them of one category (see README.md)
    choose_map: bool | None = None  # by synthetic defects; None is true for the default score of whole images

    # running
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    keep_checkpoints: bool = False  # when the model is finished, too
    resume_from_checkpoint: str | None = None  # a checkpoint folder, or "latest"
    validation_steps: int = 250
    report_to: str | None = "tensorboard"  # tracker of accelerate, or none

    def __post_init__(self):
        for entry in dataclasses.fields(self):
            setattr(self, entry.name, converted(entry.type, getattr(self, entry.name), entry.name))
        if self.report_to == "none":
            self.report_to = None
        for name, known in CHOICES.items():
            unknown = sorted(set(as_list(getattr(self, name))) - set(known))
            if unknown:
                raise SettingsError(f"{name}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
        self._check_ranges()
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise SettingsError(f"levels: must name at least one feature level, and none twice, got {self.levels}")
        if len(set(self.categories)) != len(self.categories) or len(self.categories) == 1:
            raise SettingsError(f"categories: must name at least two different folders in data, got {self.categories}")
        if self.resolution % self.feature_stride:
            raise SettingsError(
                f"resolution: must be a multiple of feature_stride {self.feature_stride}, got {self.resolution}"
            )
        self._check_aspect_ratio()
        if self.short_side is not None:
            if self.short_side < self.resolution:
                raise SettingsError(f"short_side: must be at least the resolution {self.resolution}, got {self.short_side}")
            if not self.shared_gaussian:
                raise SettingsError("short_side: needs shared_gaussian: tiles from all over an image share one Gaussian")
        if self.overwrite and self.resume_from_checkpoint == "latest":
            raise SettingsError("overwrite: begins anew, and resume_from_checkpoint latest goes on; give one of them")
        self._check_score()
        if self.profile == GAUSSIAN and not self.has_gaussian_profile:
            raise SettingsError("profile: gaussian must be one of profiles, and needs the default score of whole images")
        if self.choose_map and not self._has_default_map:
            raise SettingsError(
                "choose_map: chooses among maps of the default score of whole images; leave score and short_side"
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` of the model: of images, or of tiles of them; the longer side is a multiple of 32."""
        longer = SIDE_STEP * round(self.resolution * max(self.aspect_ratio, 1 / self.aspect_ratio) / SIDE_STEP)
        sides = (self.resolution, max(self.resolution, longer))
        return sides if self.aspect_ratio >= 1 else sides[::-1]

    @property
    def is_square(self) -> bool:
        """Whether the model sees squares."""
        return len(set(self.image_size)) == 1

    @property
    def grid(self) -> tuple[int, int]:
        """`(height, width)` of the features' grid."""
        height, width = self.image_size
        return height // self.feature_stride, width // self.feature_stride

    @property
    def chooses_map(self) -> bool:
        """Whether the anomaly map is chosen by synthetic defects."""
        return self._has_default_map if self.choose_map is None else self.choose_map

    @property
    def keeps_moments(self) -> bool:
        """Whether moments are written beside the model; of several categories or long images they would take gigabytes."""
        return not self.categories and self.is_square if self.moments is None else self.moments

    @property
    def has_gaussian_profile(self) -> bool:
        """Whether the model can score without its diffusion model, as the first one of a run does."""
        score = ScoreConfig(**score_settings(self.score, self.short_side), short_side=self.short_side)
        return GAUSSIAN in self.profiles and profile_settings(GAUSSIAN, score, SCALE_TERMS) is not None

    @property
    def _has_default_map(self) -> bool:
        return self.score == {} and self.short_side is None

    def _check_aspect_ratio(self) -> None:
        if self.aspect_ratio == AUTO:
            return
        if not isinstance(self.aspect_ratio, float) or not 1 / LARGEST_RATIO <= self.aspect_ratio <= LARGEST_RATIO:
            bounds = f"{1 / LARGEST_RATIO:g} to {LARGEST_RATIO:g}"
            raise SettingsError(f"aspect_ratio: must be a number from {bounds} or {AUTO}, got {self.aspect_ratio!r}")
        if self.is_square:
            return
        if SIDE_STEP % self.feature_stride:
            raise SettingsError(
                f"aspect_ratio: long images need a feature_stride that divides {SIDE_STEP}, got {self.feature_stride}"
            )
        if self.unet.get("add_attention", True):
            raise SettingsError(
                "aspect_ratio: long images are trained on in square crops, which a UNet with attention would not see "
                "whole: add_attention: false in unet, or aspect_ratio 1"
            )
        if self.short_side is not None:
            raise SettingsError("aspect_ratio: tiles are squares; leave aspect_ratio or short_side")
        if "rot90" in self.augmentations:
            raise SettingsError("aspect_ratio: only squares can be turned by quarters; leave aspect_ratio or rot90")

    def _check_ranges(self) -> None:
        for bounds, fits, text in (
            (AT_LEAST, lambda value, bound: value >= bound, "at least"),
            (ABOVE, lambda value, bound: value > bound, "above"),
            (BELOW, lambda value, bound: value < bound, "below"),
            ({"max_timestep": NOISE_LEVELS, "corrupted_share": 1}, lambda value, bound: value <= bound, "at most"),
        ):
            for name, bound in bounds.items():
                for value in as_list(getattr(self, name)):
                    if not fits(value, bound):
                        raise SettingsError(f"{name}: must be {text} {bound}, got {value}")

    def _check_score(self) -> None:
        if isinstance(self.score, str):
            if self.score not in SCORES:
                raise SettingsError(f"score: unknown {self.score}; there are {', '.join(SCORES)}, or settings")
            return
        kinds = {entry.name: entry.type for entry in dataclasses.fields(ScoreConfig) if entry.name not in SHARED_WITH_SCORE}
        unknown = sorted(set(self.score) - set(kinds))
        if unknown:
            hint = " (a setting of the run)" if unknown[0] in SHARED_WITH_SCORE else ""
            raise SettingsError(f"score: has no setting {unknown[0]}{hint}; there are {', '.join(kinds)}")
        self.score = {name: converted(kinds[name], value, f"score: {name}") for name, value in self.score.items()}
        try:
            config = ScoreConfig(**score_settings(self.score, self.short_side))
        except ValueError as error:
            raise SettingsError(f"score: {error}") from error
        if min(config.weights.values()) < 0 or not any(config.weights.values()):
            raise SettingsError(f"score: weights must be at least 0, and one above 0, got {dict(config.weights)}")
        too_noisy = [t for t in config.timesteps if not 0 <= t < self.max_timestep]
        if too_noisy:
            raise SettingsError(f"score: timesteps {too_noisy} are never trained on; max_timestep is {self.max_timestep}")


def training_steps(config: TrainingConfig, num_images: int, num_processes: int) -> int:
    """Optimizer steps of a run: `max_train_steps`, or as many as `max_train_epochs` passes over the images take."""
    images_per_step = config.train_batch_size * config.gradient_accumulation_steps * num_processes
    return _at_most_epochs(config.max_train_steps, config.max_train_epochs, num_images, images_per_step)


def feature_denoiser_steps(config: TrainingConfig, num_images: int) -> int:
    """The same of the feature denoiser, which one process trains."""
    return _at_most_epochs(config.feature_denoiser_steps, config.max_train_epochs, num_images, config.train_batch_size)


def _at_most_epochs(steps: int, epochs: int | None, num_images: int, images_per_step: int) -> int:
    return steps if epochs is None else min(steps, epochs * math.ceil(num_images / images_per_step))


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """Reads `--config <preset name or YAML file>` and the overriding options.

    Exits with status 2 and a line naming the option when a value is missing or wrong.
    """
    parser = argparse.ArgumentParser(
        description="Train diffad on images of good parts.",
        usage="%(prog)s [--config PRESET] --data DATA [--SETTING VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="cpu-small", help="preset in training/configs, or a YAML file")
    for name in option_names():
        hidden = argparse.SUPPRESS if name in FORMER_NAMES else "see training/config.py"
        parser.add_argument(f"--{name}", help=hidden)
    options = vars(parser.parse_args(spell_out_switches(sys.argv[1:] if arguments is None else arguments)))
    try:
        return load_config(options.pop("config"), options)
    except SettingsError as error:
        parser.exit(2, f"error: {error}\n")


def option_names() -> list[str]:
    """Names of all settings, then the former ones."""
    return [*TrainingConfig.__dataclass_fields__, *FORMER_NAMES]


def spell_out_switches(arguments: Sequence[str]) -> list[str]:
    """Command-line words in which `--all_good` alone has become `--all_good true`, as options that take a value want it."""
    switches = {entry.name for entry in dataclasses.fields(TrainingConfig) if entry.type is bool}
    switches |= {former for former, present in FORMER_NAMES.items() if present in switches}
    words: list[str] = []
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        words.append(word)
        name = word.removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in switches and following.lower() not in YAML_BOOLEANS:
            words.append("true")
    return words


def load_config(preset: str, options: Mapping[str, str | None]) -> TrainingConfig:
    """A preset's settings (name in training/configs, or a YAML file), overridden by the options that are not None.

    Raises:
        SettingsError: naming the preset or setting that is missing or wrong.
    """
    settings = _read_preset(preset)
    kinds = {entry.name: entry.type for entry in dataclasses.fields(TrainingConfig)}
    given = _with_present_names({name: text for name, text in options.items() if text is not None})
    for name, text in given.items():
        # As it was typed where a setting is text; otherwise YAML's rules make numbers, lists, booleans and null of it.
        settings[name] = text if kinds[name] is str else parsed(text, f"--{name} {text}: not a value", {name: kinds[name]})
    if not settings.get("data"):
        raise SettingsError("--data is missing: a folder of good images")
    return TrainingConfig(**settings)


def save_config(config: TrainingConfig, path: Path) -> None:
    """Writes all settings of a run as JSON, which YAML readers (and `--config`) accept."""
    write_text(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def _read_preset(name: str) -> dict:
    path = Path(name) if Path(name).is_file() else PRESETS / f"{name}.yaml"
    if not path.is_file():
        presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise SettingsError(f"--config {name}: no such file, and no preset of that name ({presets})")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not text in UTF-8; save it so") from None
    kinds = {entry.name: entry.type for entry in dataclasses.fields(TrainingConfig)}
    settings = parsed(text, str(path), kinds | {former: kinds[present] for former, present in FORMER_NAMES.items()})
    if not isinstance(settings, dict | None):
        raise SettingsError(f"{path}: holds no settings, one `name: value` a line")
    settings = _with_present_names(settings or {})
    unknown = sorted(str(name) for name in set(settings) - set(kinds))
    if unknown:
        raise SettingsError(f"{path}: unknown settings {', '.join(unknown)}")
    return settings


def _with_present_names(settings: dict) -> dict:
    try:
        return with_present_names(settings, FORMER_NAMES)
    except ValueError as error:
        raise SettingsError(str(error)) from None
