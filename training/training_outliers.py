"""Clear outliers among the training images: counted in every training, since features are at hand, and left out by `robust`."""

from collections.abc import Sequence

import torch
from diffad.data import Sample
from diffad.data.split import first_few
from diffad.models.left_out_neighbors import left_out_neighbor_distances
from diffad.scoring.outliers import ROUNDS, ScaleVectors, find_outliers
from diffad_training.config import TrainingConfig
from diffad_training.dataset import CachedDataset

LEAST_IMAGES = 20  # of a category; fewer say too little of what is usual


def training_outliers(
    cached: CachedDataset, train_groups: Sequence[Sequence[int]], mean: torch.Tensor, std: torch.Tensor, config: TrainingConfig
) -> list[int]:
    """Indices in `cached` of the images that are clear outliers within their category, by their fine features alone.

    None of images that are cut into tiles, and none of fewer than 20. Without `robust` they are looked for once, by Gaussians;
    with it until the same ones are found, and by their nearest other images, too, which takes seconds to minutes.

    Args:
        mean, std: `(D,)` of the features' channels.
    """
    found: list[int] = []
    if config.short_side is not None:
        return found
    for group in train_groups:
        if len(group) >= LEAST_IMAGES:
            features = torch.from_numpy(cached.features[group]).flatten(2).transpose(1, 2)  # (n, P, D)
            vectors = torch.stack([((one.float() - mean) / std.clamp_min(1e-6)).half() for one in features])
            scales = {"fine": ScaleVectors(vectors, config.regularization)}
            neighbors = None
            if config.robust:
                neighbors = left_out_neighbor_distances(vectors, config.grid, range(len(group))).numpy()
            outliers = find_outliers(scales, rounds=ROUNDS if config.robust else 1, neighbors=neighbors)
            found += [group[i] for i in outliers.order if outliers.is_outlier[i]]
    return found


def outlier_note(samples: Sequence[Sample], of: int, config: TrainingConfig) -> str:
    """What training prints of outliers, the most unlike first.

    Args:
        of: how many images there are to train on.
    """
    names = first_few([sample.name for sample in samples])
    if config.robust:
        return f"{len(samples)} of {of} training images are unlike all others and left out (robust): {names}"
    return (
        f"warning: {len(samples)} of {of} training images are unlike all others: {names}; `diffad audit {config.data}` shows "
        "them, --exclude leaves out what it lists, and --robust what is unlike"
    )
