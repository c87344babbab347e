"""A tiny pipeline with Gaussians and images at all further scales, not calibrated."""

import numpy as np
import torch
from diffad import DiffADPipeline, FeatureDenoiser, FeatureExtractor, MultiscaleFeatures
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from tiny_pipeline import SIZE, STRIDE, smooth_images, tiny_extractor, tiny_pipeline

GRID = (SIZE // STRIDE, SIZE // STRIDE)
SCALES = ("coarse", "detail", "coarse_detail", "neighbors")  # of the Gaussians and images
FURTHER = (*SCALES, "feature_residual", "pixel_residual")  # and of the denoiser of features


def pixels_of(images, side: int) -> torch.Tensor:
    return to_model_range(torch.from_numpy(np.stack([resize_rgb(image, (side, side)) for image in images])))


def pyramid_extractor() -> FeatureExtractor:
    """As the tiny one, with a deeper level on the coarse grid."""
    plain = tiny_extractor()
    torch.manual_seed(5)
    deeper = FeatureExtractor(
        "test_efficientnet", levels=(1, 2), stride=STRIDE, channels=plain.config.channels, context_level=3
    )
    deeper.set_statistics(plain.feature_mean, plain.feature_std)
    return deeper


def fit_scales(multiscale: MultiscaleFeatures, features: dict[str, torch.Tensor]) -> None:
    """Fits every scale to raw features of good images; neighbours are the first of them."""
    for name, of_scale in features.items():
        scale = getattr(multiscale, name)
        scale.set_statistics(of_scale)
        if name == "neighbors":
            scale.fit(of_scale[: scale.images])
        else:
            moments = scale.gaussian.new_moments()
            scale.accumulate(moments, of_scale)
            scale.gaussian.fit(moments)


def pyramid_pipeline() -> DiffADPipeline:
    """Fitted on random images, with one timestep."""
    pipe = tiny_pipeline(timesteps=(20,))
    extractor = pyramid_extractor()
    extractor.network.load_state_dict(pipe.feature_extractor.network.state_dict(), strict=False)
    extractor.set_statistics(pipe.feature_extractor.feature_mean, pipe.feature_extractor.feature_std)
    multiscale = MultiscaleFeatures(
        extractor.config.channels, extractor.coarse_channels, GRID, SCALES, rank=8, neighbor_images=4, shared_whitening=0.1
    )
    good = smooth_images(12, seed=3)
    with torch.no_grad():
        image, enlarged = pixels_of(good, SIZE), pixels_of(good, 2 * SIZE)
        detail = extractor.pyramid(enlarged, GRID)
        of_scale = {"coarse": extractor.pyramid(image).coarse, "detail": detail.fine}
        of_scale |= {"coarse_detail": detail.coarse, "neighbors": detail.fine}
        fit_scales(multiscale, of_scale)
    torch.manual_seed(6)
    denoiser = FeatureDenoiser(extractor.config.channels, GRID, width=16, num_blocks=1, rank=8)
    torch.nn.init.normal_(denoiser.conv_out.weight, std=0.1)  # that of a trained one is not zero
    pipe.register_modules(feature_extractor=extractor, multiscale=multiscale, feature_denoiser=denoiser.eval())
    with torch.no_grad():
        residuals = pipe.scorer.denoising_residuals(extractor(image), image)
        for gaussian, values in zip((denoiser.gaussian, denoiser.pixel_gaussian), residuals, strict=True):
            moments = gaussian.new_moments()
            gaussian.accumulate(moments, values)
            gaussian.fit(moments)
    return pipe
