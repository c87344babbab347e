"""Fits what good parts look like at further scales to training images, each read once."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np
import torch
from diffad import FeatureExtractor, MultiscaleFeatures
from diffad.data import Sample
from diffad_training.accumulation import scale_batches
from diffad_training.dataset import CachedDataset
from diffad_training.kept_moments import KeptMoments
from tqdm.auto import tqdm

STATISTICS_IMAGES = 64  # from which the channels are standardised


def fit_multiscale(
    multiscale: MultiscaleFeatures,
    extractor: FeatureExtractor,
    cached: CachedDataset,
    samples: Sequence[Sample],
    train_groups: Sequence[Sequence[int]],
    kept: KeptMoments | None = None,
) -> None:
    """Fits all scales.

    Args:
        samples: that `cached` is of; their files hold what an enlarged image shows.
        train_groups: for each category the indices of its training images in `cached`.
        kept: takes the moments.
    """
    scales = multiscale.config.scales
    batches_of = partial(scale_batches, extractor, cached, samples, scales=scales)
    of_statistics = _spread([i for group in train_groups for i in group], STATISTICS_IMAGES)
    first = _stacked(batches_of(of_statistics))
    for name in scales:
        getattr(multiscale, name).set_statistics(first[name])
    gaussians = [name for name in scales if name != "neighbors"]
    for category, group in enumerate(train_groups):
        moments = {name: getattr(multiscale, name).gaussian.new_moments() for name in gaussians}
        # Those that are at hand are not read again
        own = [place for place, index in enumerate(of_statistics) if index in group]
        batches = batches_of([index for index in group if index not in of_statistics])
        batches = chain([{name: values[own] for name, values in first.items()}] if own else [], batches)
        for batch in tqdm(batches, desc="fitting further scales", mininterval=2, disable=None):
            for name in gaussians:
                getattr(multiscale, name).accumulate(moments[name], batch[name])
        for name in gaussians:
            getattr(multiscale, name).gaussian.fit(moments[name], category)
        if "neighbors" in scales:
            images = _stacked(batches_of(_spread(group, multiscale.neighbors.images)))
            multiscale.neighbors.fit(images["neighbors"], category)
        if kept is not None:
            kept.add(category, moments)


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices)))
    return [indices[i] for i in np.unique(places.astype(int))]


def _stacked(batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    parts = list(batches)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
