"""Builds the pipeline's components from the settings of a run."""

from collections.abc import Mapping, Sequence

import torch
from diffad import (
    Calibration,
    FeatureDenoiser,
    FeatureExtractor,
    JointUNet2DModel,
    LinearDiscriminant,
    MultiscaleFeatures,
    PadimGaussian,
)
from diffad.data import DataError
from diffad.diffusion.chain import ReverseChain
from diffad.models.half_precision import round_to_half
from diffad.models.lite_weights import BLOCKS_PER_STAGE
from diffad.scoring.config import DENOISER_TERMS, DETAIL_TERMS, SCALE_TERMS, check_fits_model
from diffad.scoring.presets import score_settings
from diffad.scoring.profiles import BALANCED, PROFILES, profile_settings, scales_of
from diffad_training.config import TrainingConfig
from diffad_training.conversion import SettingsError
from diffusers import DDPMScheduler, UNet2DModel

NEIGHBOR_IMAGES = 32
GAUSSIAN_RANK = 32  # keeps what full covariances of 176 channels find, at a fifth of their size
# Of the enlarged image's features, by which maps mark small defects: few images say what a position's covariance is, so that
# the mean covariance of all positions, with this added to its diagonal, counts as so many images more. Chosen on screws, tiles,
# grid, nuts and fabric (model_cards/score.md).
SHARED_WHITENING, DETAIL_PRIOR_IMAGES = 0.1, 100
# Training images from which on that is right: one more than the 32 components that are kept of a position's covariance. With
# fewer its rank is lower and its distances nearly Euclidean, which marks the strong defects of all three papers more sharply.
# There the mean counts as few images: what moves a little from image to image is far from Euclidean (score.md).
FEWEST_TRAINING_IMAGES, FEW_IMAGES_PRIOR = 33, 3
# Of coarse features, which decide verdicts: rank, regularization, and how many images the mean covariance counts as. Chosen on
# the same and paper, with 24 images of them to all (score.md).
COARSE_RANK, COARSE_REGULARIZATION, COARSE_PRIOR_IMAGES = 64, 0.05, 60


def build_extractor(config: TrainingConfig) -> FeatureExtractor:
    """The frozen backbone with pretrained weights, rounded to half precision; only names other than `lite0`, `lite1` and
    `lite2` may download.

    Raises:
        SettingsError: if there is no such backbone or level, or its weights can't be had.
    """
    levels = tuple(config.levels)
    library, _, name = config.extractor.rpartition(":")
    try:
        if config.extractor in BLOCKS_PER_STAGE:
            extractor = FeatureExtractor.from_lite_package(config.extractor, levels, config.feature_stride)
        elif library == "transformers":
            extractor = FeatureExtractor.from_transformers(name, levels, config.feature_stride)
        else:
            extractor = FeatureExtractor.from_timm(config.extractor, levels, config.feature_stride)
    except (ImportError, OSError, RuntimeError, ValueError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"extractor={config.extractor}, levels={config.levels}: {reason}") from error
    round_to_half(extractor)
    return extractor


def build_unet(config: TrainingConfig, feature_channels: int) -> JointUNet2DModel:
    """A new joint UNet, or a trained one under a new feature head; conditional on the category where there are several.

    Raises:
        DataError: if there is no such UNet, or an argument does not exist or fit.
        SettingsError: if the resolution does not fit.
    """
    settings = {
        "sample_size": config.resolution if config.is_square else config.image_size,
        "feature_channels": feature_channels,
        "feature_stride": config.feature_stride,
        **config.unet,
    }
    if config.categories:
        settings["num_class_embeds"] = len(config.categories)
    try:
        unet = JointUNet2DModel(**settings) if config.pretrained_unet is None else _pretrained_unet(config, settings)
    except (ValueError, TypeError, IndexError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"pretrained_unet={config.pretrained_unet} and unet={config.unet}: {reason}") from error
    if any(side % unet.stride for side in config.image_size):
        sides = " x ".join(map(str, config.image_size))
        raise SettingsError(f"resolution: must be a multiple of {unet.stride}, the UNet's stride, got {sides}")
    return unet


def _pretrained_unet(config: TrainingConfig, settings: dict) -> JointUNet2DModel:
    class_name = UNet2DModel.load_config(config.pretrained_unet)["_class_name"]
    trained_class = JointUNet2DModel if class_name == "JointUNet2DModel" else UNet2DModel
    return JointUNet2DModel.from_unet(trained_class.from_pretrained(config.pretrained_unet), **settings)


def build_scheduler(config: TrainingConfig) -> DDPMScheduler:
    """The paper's chain: 1000 linear steps, learned variance range; linspace makes its 250-step respacing exact."""
    return DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace", prediction_type=config.prediction_type)


def build_gaussian(config: TrainingConfig, feature_channels: int) -> PadimGaussian:
    """One Gaussian per position, or one for all; of several categories each has its own."""
    return PadimGaussian(
        feature_channels,
        grid=None if config.shared_gaussian else config.grid,
        num_dims=config.gaussian_dims,
        seed=config.seed,
        num_classes=max(1, len(config.categories)),
        regularization=config.regularization,
        rank=min(GAUSSIAN_RANK, (config.gaussian_dims or feature_channels) - 1),
    )


def build_multiscale(
    config: TrainingConfig, extractor: FeatureExtractor, training_images: int, scales: Sequence[str]
) -> MultiscaleFeatures | None:
    """What good parts look like at further scales, not fitted yet; None for no scale.

    Args:
        training_images: of the category that has the fewest.
        scales: of [`scales_of_model`], or some of them.
    """
    scales = tuple(scale for scale in scales if scale not in DENOISER_TERMS)
    if not scales:
        return None
    return MultiscaleFeatures(
        extractor.config.channels,
        extractor.coarse_channels,
        grid=None if config.shared_gaussian else config.grid,
        scales=scales,
        rank=GAUSSIAN_RANK,
        **_conditioning_of_detail(config, training_images),
        coarse_rank=COARSE_RANK,
        coarse_regularization=COARSE_REGULARIZATION,
        coarse_pooling=COARSE_PRIOR_IMAGES / (COARSE_PRIOR_IMAGES + training_images),
        neighbor_images=min(NEIGHBOR_IMAGES, training_images),
        seed=config.seed,
        num_classes=max(1, len(config.categories)),
    )


def _conditioning_of_detail(config: TrainingConfig, training_images: int) -> dict[str, float]:
    """Settings of the Gaussian of the enlarged image's features, by the images that it is fitted to."""
    if training_images < FEWEST_TRAINING_IMAGES:
        pooling = FEW_IMAGES_PRIOR / (FEW_IMAGES_PRIOR + training_images)
        return {"regularization": config.regularization, "pooling": pooling}
    # n Sigma_p + k (Sigma_mean + w I) in units of n, whitened by the second term
    return {"regularization": DETAIL_PRIOR_IMAGES / training_images, "shared_whitening": SHARED_WHITENING}


def build_feature_denoiser(config: TrainingConfig, feature_channels: int) -> FeatureDenoiser:
    """A new denoiser of features; its weights follow from the seed.

    Raises:
        SettingsError: if a setting of it can't be used.
    """
    settings = {
        "grid": None if config.shared_gaussian else config.grid,
        "thumbnails": 1 if config.feature_stride % 2 else 2,
        "fold": 1 if any(side % 2 for side in config.grid) else 2,
        "num_classes": max(1, len(config.categories)),
        "regularization": config.regularization,
        "rank": min(GAUSSIAN_RANK, feature_channels - 1),
        **config.feature_denoiser,
    }
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            return FeatureDenoiser(feature_channels, **settings)
        except (ValueError, TypeError) as error:
            raise SettingsError(f"feature_denoiser: {' '.join(str(error).split())}") from error


def scales_of_model(config: TrainingConfig) -> tuple[str, ...]:
    """Scales of the score, of the profiles that the model may have, and of the maps that it may choose from."""
    score = build_calibration(config).score_config
    wanted, possible = set(score.scales), set(SCALE_TERMS)
    if config.shared_gaussian:  # images are kept for each position
        possible.discard("neighbors")
    if config.chooses_map:
        wanted |= {"neighbors", "feature_residual"}
    if config.short_side is not None:
        possible -= set(DETAIL_TERMS)
    wanted |= {scale for name in config.profiles if profile_settings(name, score, possible) for scale in scales_of([name])}
    return tuple(scale for scale in SCALE_TERMS if scale in wanted & possible)


def build_profiles(
    config: TrainingConfig, balanced: Calibration, scales: Sequence[str], maps: Mapping[str, Sequence[str]]
) -> dict[str, Calibration]:
    """Calibrations of the profiles that a model has besides its own score, not fitted yet, by name.

    Args:
        balanced: its own, once its map is chosen.
        scales: that it has.
        maps: terms of those profiles' maps that were chosen for the product.
    """
    calibrations = {}
    for name in PROFILES:
        if name in config.profiles and name != BALANCED:
            settings = profile_settings(name, balanced.score_config, scales, maps.get(name))
            if settings is not None:
                calibrations[name] = balanced.unfitted(**settings)
    return calibrations


def build_calibration(config: TrainingConfig) -> Calibration:
    """The settings of the score, without statistics yet."""
    return Calibration(
        seed=config.seed,
        short_side=config.short_side,
        tile_overlap=config.tile_overlap,
        num_calibration_images=(0,) * len(config.categories) if config.categories else 0,
        **score_settings(config.score, config.short_side),
    )


def build_discriminant(config: TrainingConfig, feature_channels: int) -> LinearDiscriminant | None:
    """What recognises the categories, of a model of several."""
    return LinearDiscriminant(feature_channels, tuple(config.categories), knows_distances=True) if config.categories else None


def check_score(config: TrainingConfig, scheduler: DDPMScheduler, feature_channels: int) -> None:
    """Refuses settings of Gaussians, score and feature denoiser that would only fail once the UNet is trained.

    Raises:
        SettingsError: naming the setting.
    """
    if config.gaussian_dims is not None and config.gaussian_dims > feature_channels:
        raise SettingsError(f"gaussian_dims: must be at most {feature_channels}, the extractor's, got {config.gaussian_dims}")
    denoiser = build_feature_denoiser(config, feature_channels)
    try:
        ReverseChain(scheduler).check_timesteps((denoiser.config.timestep,))
    except ValueError as error:
        raise SettingsError(f"feature_denoiser: {error}") from error
    score = build_calibration(config).score_config
    try:
        check_fits_model(score, config.image_size, None if config.shared_gaussian else config.grid)
        ReverseChain(scheduler, score.num_inference_steps).check_timesteps(score.timesteps)
    except ValueError as error:
        raise SettingsError(f"score: {error}") from error


def choose_precision(config: TrainingConfig) -> str:
    """`auto` is bf16 where the hardware computes it, fp16 on older GPUs, else none."""
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if torch.cuda.is_available():
        # Older GPUs only pretend to, and are slower with it.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Where the CPU has the instructions a step of cpu-small is 2.2 times as fast (0.78 against 1.70 s on two cores of a busy
    # Xeon with AMX), and far slower where not.
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 else "no"
