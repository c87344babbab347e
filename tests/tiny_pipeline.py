"""A complete pipeline small enough for a test: random weights, fitted and calibrated on random images."""

import numpy as np
import timm
import torch
from diffad import Calibration, DiffADPipeline, FeatureExtractor, JointUNet2DModel, PadimGaussian
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


def tiny_pipeline(num_class_embeds: int | None = None, **recipe) -> DiffADPipeline:
    """Gaussian fitted, not calibrated."""
    extractor = tiny_extractor()
    channels = extractor.config.channels
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in smooth_images(12, seed=3)])
    images = torch.from_numpy(pixels).float() / 127.5 - 1
    with torch.no_grad():
        raw = extractor.raw_features(images)
        extractor.set_statistics(raw.mean(dim=(0, 2, 3)), raw.std(dim=(0, 2, 3)))
        gaussian = PadimGaussian(channels, grid=(SIZE // STRIDE, SIZE // STRIDE))
        moments = gaussian.new_moments()
        gaussian.accumulate(moments, extractor(images))
    pipe = DiffADPipeline(
        unet=tiny_unet(channels, num_class_embeds),
        scheduler=DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace"),
        feature_extractor=extractor,
        gaussian=gaussian.fit(moments),
        residual_gaussian=PadimGaussian(channels, grid=(SIZE // STRIDE, SIZE // STRIDE)),
        calibration=Calibration(**recipe),
    )
    residual_moments = gaussian.new_moments()
    with torch.no_grad():
        labels = None if num_class_embeds is None else torch.zeros(len(images), dtype=torch.long)
        pipe.residual_gaussian.accumulate(residual_moments, pipe.feature_residuals(images, labels))
    pipe.residual_gaussian.fit(residual_moments)
    pipe.set_progress_bar_config(disable=True)
    return pipe
