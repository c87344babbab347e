"""Fits what good parts look like at further scales to training images, each read once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from diffad import FeatureExtractor, MultiscaleFeatures, PadimGaussian
from diffad.data import Sample
from diffad.imaging.preprocessing import resize_rgb
from diffad.imaging.tensors import to_model_range
from diffad.scoring.config import DETAIL_TERMS
from diffad_training.dataset import CachedDataset
from tqdm.auto import tqdm

BATCH_SIZE = 16
STATISTICS_IMAGES = 64  # from which the channels are standardised


def fit_multiscale(
    multiscale: MultiscaleFeatures,
    pooled_detail: PadimGaussian | None,
    extractor: FeatureExtractor,
    cached: CachedDataset,
    samples: Sequence[Sample],
    train_groups: Sequence[Sequence[int]],
) -> None:
    """Fits all scales.

    Args:
        pooled_detail: a second Gaussian of the scale `detail`, of another conditioning, that is fitted, too.
        samples: that `cached` is of; their files hold what an enlarged image shows.
        train_groups: for each category the indices of its training images in `cached`.
    """
    size, stride, scales = cached.images.shape[-1], extractor.config.stride, multiscale.config.scales

    def features(indices: Sequence[int]) -> dict[str, torch.Tensor]:
        images = to_model_range(torch.from_numpy(cached.images[indices]).to(extractor.device))
        of_scale = {"coarse": extractor.pyramid(images).coarse}
        if not set(DETAIL_TERMS).isdisjoint(scales):
            pixels = np.stack([resize_rgb(samples[cached.owners[i]].read(), (2 * size, 2 * size)) for i in indices])
            enlarged = to_model_range(torch.from_numpy(pixels).to(extractor.device))
            detail = extractor.pyramid(enlarged, grid=(size // stride, size // stride))
            of_scale |= {"detail": detail.fine, "coarse_detail": detail.coarse, "neighbors": detail.fine}
        return {name: of_scale[name] for name in scales}

    of_statistics = _spread([i for group in train_groups for i in group], STATISTICS_IMAGES)
    first = _stacked(_batches(of_statistics, features))
    for name in scales:
        getattr(multiscale, name).set_statistics(first[name])
    gaussians = [name for name in scales if name != "neighbors"]
    for category, group in enumerate(train_groups):
        moments = {name: getattr(multiscale, name).gaussian.new_moments() for name in gaussians}
        # Those that are at hand are not read again
        own = [place for place, index in enumerate(of_statistics) if index in group]
        batches = _batches([index for index in group if index not in of_statistics], features)
        batches = chain([{name: values[own] for name, values in first.items()}] if own else [], batches)
        for batch in tqdm(batches, desc="fitting further scales", mininterval=2, disable=None):
            for name in gaussians:
                getattr(multiscale, name).accumulate(moments[name], batch[name])
        for name in gaussians:
            getattr(multiscale, name).gaussian.fit(moments[name], category)
        if pooled_detail is not None:
            pooled_detail.fit(moments["detail"], category)
        if "neighbors" in scales:
            kept = _stacked(_batches(_spread(group, multiscale.neighbors.images), features))
            multiscale.neighbors.fit(kept["neighbors"], category)


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices)))
    return [indices[i] for i in np.unique(places.astype(int))]


def _batches(indices: Sequence[int], features: Callable) -> Iterator[dict[str, torch.Tensor]]:
    return (features(indices[start : start + BATCH_SIZE]) for start in range(0, len(indices), BATCH_SIZE))


def _stacked(batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    parts = list(batches)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
