"""A complete pipeline small enough for a test: random weights, fitted and calibrated on random images."""

from pathlib import Path

import numpy as np
import timm
import torch
from diffad import Calibration, DiffADPipeline, FeatureExtractor, JointUNet2DModel, LinearDiscriminant, PadimGaussian
from diffusers import DDPMScheduler
from PIL import Image

SIZE, STRIDE = 32, 8


def smooth_images(count: int, seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> list[Image.Image]:
    """Images with structure at several scales."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(60, 200, size=(4, 4, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=float) + rng.normal(
            0, 8, (size[1], size[0], 3)
        )
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return images


def tiny_extractor() -> FeatureExtractor:
    torch.manual_seed(1)
    channels = timm.create_model("test_efficientnet", features_only=True, out_indices=(1, 2)).feature_info.channels()
    return FeatureExtractor("test_efficientnet", levels=(1, 2), stride=STRIDE, channels=sum(channels))


def tiny_unet(feature_channels: int, num_class_embeds: int | None = None) -> JointUNet2DModel:
    torch.manual_seed(2)
    unet = JointUNet2DModel(
        sample_size=SIZE,
        feature_channels=feature_channels,
        feature_stride=STRIDE,
        patch_size=2,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
        num_class_embeds=num_class_embeds,
    )
    # A trained head is not zero.
    torch.nn.init.normal_(unet.feature_head.conv.weight, std=0.1)
    return unet.eval()


def category_images(count: int, seed: int, label: int, size: tuple[int, int] = (SIZE, SIZE)) -> list[Image.Image]:
    """Images of one of several categories: brightness tells them apart; those of category 0 are `smooth_images`."""
    return [image.point(lambda value: value // (1 + label)) for image in smooth_images(count, seed, size)]


def tiny_pipeline(class_names: tuple[str, ...] | None = None, **score_settings) -> DiffADPipeline:
    """Gaussians fitted, not calibrated; with `class_names` a model of the categories of `category_images`."""
    classes = range(len(class_names or ("one",)))
    extractor = tiny_extractor()
    channels, grid = extractor.config.channels, (SIZE // STRIDE, SIZE // STRIDE)
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for label in classes for image in category_images(12, 3, label)])
    images = torch.from_numpy(pixels).float() / 127.5 - 1
    with torch.no_grad():
        raw = extractor.raw_features(images)
        extractor.set_statistics(raw.mean(dim=(0, 2, 3)), raw.std(dim=(0, 2, 3)))
        features = extractor(images)
    pipe = DiffADPipeline(
        unet=tiny_unet(channels, None if class_names is None else len(class_names)),
        scheduler=DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace"),
        feature_extractor=extractor,
        gaussian=PadimGaussian(channels, grid, num_classes=len(classes)),
        residual_gaussian=PadimGaussian(channels, grid, num_classes=len(classes)),
        calibration=Calibration(num_calibration_images=0 if class_names is None else (0,) * len(classes), **score_settings),
        discriminant=None if class_names is None else LinearDiscriminant(channels, class_names),
    )
    labels = torch.arange(len(classes)).repeat_interleave(12)
    with torch.no_grad():
        residuals = pipe.scorer.feature_residuals(images, None if class_names is None else labels)
    for label in classes:
        for gaussian, values in ((pipe.gaussian, features), (pipe.residual_gaussian, residuals)):
            moments = gaussian.new_moments()
            gaussian.accumulate(moments, values[labels == label])
            gaussian.fit(moments, label)
    if class_names is not None:
        pipe.discriminant.fit(features.mean(dim=(2, 3)).numpy(), labels.numpy())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiled_pipeline(class_names: tuple[str, ...] | None = None, **score_settings) -> DiffADPipeline:
    """One Gaussian for all positions: fit to be calibrated with a `short_side` that is scored in tiles."""
    pipe = tiny_pipeline(class_names, smoothing_sigma=1.0, **score_settings)
    classes = range(len(class_names or ("one",)))
    channels = pipe.feature_extractor.config.channels
    gaussians = {
        name: PadimGaussian(channels, grid=None, num_classes=len(classes)) for name in ("gaussian", "residual_gaussian")
    }
    for label in classes:
        pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in category_images(8, 3, label)])
        images = torch.from_numpy(pixels).float() / 127.5 - 1
        labels = None if class_names is None else torch.full((8,), label)
        with torch.no_grad():
            values = {
                "gaussian": pipe.feature_extractor(images),
                "residual_gaussian": pipe.scorer.feature_residuals(images, labels),
            }
        for name, gaussian in gaussians.items():
            moments = gaussian.new_moments()
            gaussian.accumulate(moments, values[name])
            gaussian.fit(moments, label)
    pipe.register_modules(**gaussians)
    return pipe


def save_test_images(folder: Path, defective: int) -> Path:
    """MVTec-layout test images: three good ones, and some with a black and white block and its mask."""
    for name in ("test/good", "test/block", "ground_truth/block"):
        (folder / name).mkdir(parents=True)
    for i, image in enumerate(smooth_images(3, seed=20)):
        image.save(folder / f"test/good/{i}.png")
    for i, image in enumerate(smooth_images(defective, seed=21)):
        pixels, mask = np.array(image), np.zeros((32, 32), dtype=np.uint8)
        pixels[8:20, 8:20] = np.where(np.indices((12, 12)).sum(0) % 4 < 2, 0, 255)[..., None]
        mask[8:20, 8:20] = 255
        Image.fromarray(pixels).save(folder / f"test/block/{i}.png")
        Image.fromarray(mask).save(folder / f"ground_truth/block/{i}_mask.png")
    return folder


def save_tiny_model(folder: str | Path) -> None:
    """Writes a calibrated tiny pipeline, as training would leave it."""
    pipe = tiny_pipeline()
    pipe.calibrate(smooth_images(21, seed=4))
    pipe.save_pretrained(folder)
