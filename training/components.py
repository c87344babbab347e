"""Builds the pipeline's components from the settings of a run."""

import torch
from diffad import Calibration, FeatureExtractor, JointUNet2DModel, LinearDiscriminant, PadimGaussian
from diffad.data import DataError
from diffad.models.lite_weights import BLOCKS_PER_STAGE
from diffad_training.config import TrainingConfig
from diffusers import DDPMScheduler, UNet2DModel


def build_extractor(config: TrainingConfig) -> FeatureExtractor:
    """The frozen backbone with pretrained weights; only names other than `lite0`, `lite1` and `lite2` may download."""
    levels = tuple(config.levels)
    if config.extractor in BLOCKS_PER_STAGE:
        return FeatureExtractor.from_lite_package(config.extractor, levels, config.feature_stride)
    library, _, name = config.extractor.rpartition(":")
    if library == "transformers":
        return FeatureExtractor.from_transformers(name, levels, config.feature_stride)
    return FeatureExtractor.from_timm(config.extractor, levels, config.feature_stride)


def build_unet(config: TrainingConfig, feature_channels: int) -> JointUNet2DModel:
    """A new joint UNet, or a trained one under a new feature head; conditional on the class where there are several."""
    settings = {
        "sample_size": config.resolution,
        "feature_channels": feature_channels,
        "feature_stride": config.feature_stride,
        **config.unet,
    }
    if config.categories:
        settings["num_class_embeds"] = len(config.categories)
    try:
        if config.pretrained_unet is None:
            return JointUNet2DModel(**settings)
        class_name = UNet2DModel.load_config(config.pretrained_unet)["_class_name"]
        trained_class = JointUNet2DModel if class_name == "JointUNet2DModel" else UNet2DModel
        return JointUNet2DModel.from_unet(trained_class.from_pretrained(config.pretrained_unet), **settings)
    except ValueError as error:
        raise DataError(f"pretrained_unet={config.pretrained_unet} and unet={config.unet}: {error}") from error


def build_scheduler(config: TrainingConfig) -> DDPMScheduler:
    """The paper's chain: 1000 linear steps, learned variance range; linspace makes its 250-step respacing exact."""
    return DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace", prediction_type=config.prediction_type)


def build_gaussian(config: TrainingConfig, feature_channels: int) -> PadimGaussian:
    side = config.resolution // config.feature_stride
    return PadimGaussian(
        feature_channels,
        grid=None if config.shared_gaussian else (side, side),
        num_dims=config.gaussian_dims,
        regularization=config.regularization,
        seed=config.seed,
        num_classes=max(1, len(config.categories)),
    )


def build_calibration(config: TrainingConfig) -> Calibration:
    return Calibration(
        seed=config.seed,
        short_side=config.short_side,
        tile_overlap=config.tile_overlap,
        num_calibration_images=(0,) * len(config.categories) if config.categories else 0,
        **config.recipe,
    )


def build_discriminant(config: TrainingConfig, feature_channels: int) -> LinearDiscriminant | None:
    return LinearDiscriminant(feature_channels, tuple(config.categories), knows_distances=True) if config.categories else None


def choose_precision(config: TrainingConfig) -> str:
    """`auto` is bf16 where the hardware computes it, fp16 on older GPUs, else none."""
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    # oneDNN runs bf16 convolutions about twice as fast where the CPU has the instructions, and far slower where not.
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 else "no"
