"""What the Gaussians of a model are of: values of good images, each image looked at once and added up to moments."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from diffad import DiffADPipeline, FeatureExtractor, PadimGaussian
from diffad.data import Sample
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.models.moments import StreamingMoments
from diffad.scoring.config import DETAIL_TERMS
from diffad_training.dataset import CachedDataset
from tqdm.auto import tqdm

BATCH_SIZE = 16
Moments = dict[str, StreamingMoments]  # by term


def grid_gaussians(pipe: DiffADPipeline) -> dict[str, PadimGaussian]:
    """The Gaussians on the grid of the features that a model has, by the score term that they give."""
    gaussians = {"mahalanobis": pipe.gaussian}
    if pipe.residual_gaussian is not None:
        gaussians["residual"] = pipe.residual_gaussian
    if pipe.feature_denoiser is not None:
        gaussians["feature_residual"] = pipe.feature_denoiser.gaussian
        gaussians["pixel_residual"] = pipe.feature_denoiser.pixel_gaussian
    return gaussians


def scale_gaussians(pipe: DiffADPipeline) -> dict[str, PadimGaussian]:
    """Those at further scales. The scale `neighbors` has images in place of a Gaussian."""
    scales = () if pipe.multiscale is None else pipe.multiscale.config.scales
    return {name: getattr(pipe.multiscale, name).gaussian for name in scales if name != "neighbors"}


def accumulate_grid(
    pipe: DiffADPipeline, cached: CachedDataset, group: Sequence[int], category: int | None
) -> tuple[Moments, torch.Tensor]:
    """Moments of the values on the grid of the features of some images, and the spatial means of their features `(n, D)`.

    Args:
        group: indices in `cached`, of one category.
        category: of a model of several.
    """
    extractor, scorer, means = pipe.feature_extractor, pipe.scorer, []
    device, gaussians = extractor.device, grid_gaussians(pipe)
    moments = {term: gaussian.new_moments() for term, gaussian in gaussians.items()}
    of_batch = None if category is None else torch.tensor([category], device=device)
    for start in tqdm(range(0, len(group), BATCH_SIZE), desc="fitting the Gaussians", mininterval=2, disable=None):
        batch = group[start : start + BATCH_SIZE]
        features = extractor.standardize(torch.from_numpy(cached.features[batch]).to(device).float())  # (B, D, h, w)
        means.append(features.mean(dim=(2, 3)).cpu())
        values = {"mahalanobis": features}
        if len(gaussians) > 1:
            images = to_model_range(torch.from_numpy(cached.images[batch]).to(device))  # (B, 3, S, S)
        if "residual" in gaussians:
            values["residual"] = scorer.feature_residuals(images, of_batch)
        if "feature_residual" in gaussians:
            of_features, of_pixels = scorer.denoising_residuals(features, images, of_batch)
            values |= {"feature_residual": of_features, "pixel_residual": of_pixels}
        for term, gaussian in gaussians.items():
            gaussian.accumulate(moments[term], values[term])
    return moments, torch.cat(means)


def accumulate_scales(pipe: DiffADPipeline, cached: CachedDataset, samples: Sequence[Sample], group: Sequence[int]) -> Moments:
    """The same of the values at further scales.

    Args:
        samples: that `cached` is of; their files hold what an enlarged image shows.
    """
    gaussians = scale_gaussians(pipe)
    moments = {name: gaussian.new_moments() for name, gaussian in gaussians.items()}
    if gaussians:
        for values in scale_batches(pipe.feature_extractor, cached, samples, group, tuple(gaussians)):
            for name in gaussians:
                getattr(pipe.multiscale, name).accumulate(moments[name], values[name])
    return moments


def scale_batches(
    extractor: FeatureExtractor, cached: CachedDataset, samples: Sequence[Sample], indices: Sequence[int], scales: Sequence[str]
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Raw features `(B, C, h, w)` of images in batches, by the scale that looks at them."""
    size, stride = cached.images.shape[-2:], extractor.config.stride
    detail_size, grid = tuple(2 * side for side in size), tuple(side // stride for side in size)
    for start in range(0, len(indices), BATCH_SIZE):
        batch = indices[start : start + BATCH_SIZE]
        images = to_model_range(torch.from_numpy(cached.images[batch]).to(extractor.device))
        of_scale = {"coarse": extractor.pyramid(images).coarse}
        if not set(DETAIL_TERMS).isdisjoint(scales):
            pixels = np.stack([resize_rgb(samples[cached.owners[i]].read(), detail_size) for i in batch])
            enlarged = to_model_range(torch.from_numpy(pixels).to(extractor.device))
            detail = extractor.pyramid(enlarged, grid=grid)
            of_scale |= {"detail": detail.fine, "coarse_detail": detail.coarse, "neighbors": detail.fine}
        yield {name: of_scale[name] for name in scales}
