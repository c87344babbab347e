"""Audit of good images before training: what is unlike the others, what is there twice, and what is in the test set, too."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data import DataError, Sample
from ..imaging.preprocessing import resize_rgb
from ..imaging.tensors import to_model_range
from ..models.feature_extractor import FeatureExtractor
from ..models.left_out_neighbors import left_out_neighbor_distances
from ..models.multiscale import COARSE_DIMS
from ..scoring.near_duplicates import NearDuplicates, descriptors, find_near_duplicates
from ..scoring.outliers import Outliers, ScaleVectors, find_outliers

SCALES = ("fine", "coarse", "detail", "coarse_detail")
NEIGHBORS = "fine"  # scale of the nearest other images
REGULARIZATION = 0.5  # of the Gaussians
STATISTICS_IMAGES = 64  # from which the channels are standardised
OUTLIER, DUPLICATE, LEAK = "outlier", "duplicate", "leak"


@dataclass(frozen=True)
class AuditedImages:
    """What an audit remembers of images.

    Args:
        features: raw ones of each scale, `(n, D, h, w)` float16.
        digests: of the decoded pixels.
    """

    features: dict[str, torch.Tensor]
    digests: list[str]


@dataclass(frozen=True)
class Finding:
    """What is wrong with one training image.

    Args:
        reason: `outlier`, `duplicate` or `leak`.
        of: the image that it is a near duplicate of.
    """

    index: int
    reason: str
    of: str = ""


@dataclass(frozen=True)
class Audit:
    """What was found in the good images of a source.

    Args:
        samples: its good images; `outliers` is in their order.
        duplicates: of these and then the test images.
        findings: what to leave out, the worst first. Of near duplicates the first by name stays; of those that training and
            test images have in common the training images go.
    """

    samples: Sequence[Sample]
    test: Sequence[Sample]
    outliers: Outliers
    duplicates: NearDuplicates
    findings: list[Finding]


def read_images(samples: Sequence[Sample], extractor: FeatureExtractor, resolution: int, batch_size: int = 8) -> AuditedImages:
    """Features of images at four scales: fine and coarse grid of the image and of the image at twice the resolution.

    Raises:
        ImageError: naming an image that can't be read.
    """
    side = resolution // extractor.config.stride
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in SCALES}
    digests = []
    for start in tqdm(range(0, len(samples), batch_size), desc="reading images", disable=None):
        images = [sample.read() for sample in samples[start : start + batch_size]]
        digests += [_digest(np.asarray(image)) for image in images]
        sized = {
            scale: to_model_range(
                torch.from_numpy(np.stack([resize_rgb(image, (scale * resolution,) * 2) for image in images]))
            ).to(extractor.device)
            for scale in (1, 2)
        }
        with torch.inference_mode():
            pyramids = [extractor.pyramid(sized[1]), extractor.pyramid(sized[2], grid=(side, side))]
        for name, values in zip(SCALES, (level for pyramid in pyramids for level in pyramid)):
            parts[name].append(values.half().cpu())
    return AuditedImages({name: torch.cat(values) for name, values in parts.items()}, digests)


def scale_vectors(features: torch.Tensor, seed: int = 0) -> ScaleVectors:
    """Raw features `(n, D, h, w)` as Gaussians take them: standardised, and projected where channels are many."""
    places = np.unique(np.linspace(0, len(features) - 1, min(STATISTICS_IMAGES, len(features))).astype(int))
    chosen = features[places].float()
    mean, std = chosen.mean(dim=(0, 2, 3)), chosen.std(dim=(0, 2, 3))
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    vectors = features.flatten(2).transpose(1, 2)  # (n, P, D)
    channels = features.shape[1]
    projection = torch.diag(1 / std)
    if channels > 2 * COARSE_DIMS:
        drawn = torch.randn(channels, COARSE_DIMS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        directions = torch.linalg.qr(drawn).Q.float() * (channels / COARSE_DIMS) ** 0.5
        projection = projection @ directions
    # One image after the other: in single precision all of them may not fit
    return ScaleVectors(torch.stack([((one.float() - mean) @ projection).half() for one in vectors]), REGULARIZATION)


def audit(good: Sequence[Sample], images: AuditedImages, test: Sequence[Sample] = ()) -> Audit:
    """Audits good images whose features were read, followed by those of the test images, if there are any.

    Near duplicates are left out together, so that a defect saved twice does not hide itself.

    Raises:
        DataError: with fewer than four good images.
    """
    n = len(good)
    if n < 4:
        raise DataError(f"{n} good image(s); at least 4 are needed to tell which is unlike the others")
    duplicates = find_near_duplicates(descriptors(images.features["fine"]), images.digests)
    scales = {name: scale_vectors(images.features[name][:n]) for name in SCALES}
    own_groups = duplicates.groups[:n]
    sizes = np.bincount(own_groups, minlength=own_groups.max() + 1)
    # A group of more than half would leave no Gaussian: its images are then left out one by one
    groups = np.where(sizes[own_groups] <= n // 2, own_groups, duplicates.groups.max() + 1 + np.arange(n))
    grid = images.features[NEIGHBORS].shape[-2:]
    neighbors = left_out_neighbor_distances(scales[NEIGHBORS].vectors, grid, groups.tolist()).numpy()
    outliers = find_outliers(scales, groups.tolist(), neighbors=neighbors)
    return Audit(good, test, outliers, duplicates, _findings(good, test, outliers, duplicates))


def _findings(good: Sequence[Sample], test: Sequence[Sample], outliers: Outliers, duplicates: NearDuplicates) -> list[Finding]:
    n = len(good)
    names = [sample.name for sample in (*good, *test)]
    found = [Finding(int(i), OUTLIER) for i in outliers.order if outliers.is_outlier[i]]
    taken = {finding.index for finding in found}
    first_of_group: dict[int, int] = {}
    in_test = {int(group): i for i, group in reversed(list(enumerate(duplicates.groups))) if i >= n}
    later = []
    for i in range(n):
        group = int(duplicates.groups[i])
        if i in taken:
            continue
        if group in in_test:
            found.append(Finding(i, LEAK, names[in_test[group]]))
        elif group in first_of_group and _are_apart(good[i], good[first_of_group[group]]):
            later.append(Finding(i, DUPLICATE, names[first_of_group[group]]))
        else:
            first_of_group.setdefault(group, i)
    return found + later


def _are_apart(one: Sample, other: Sample) -> bool:
    """Whether nothing keeps two images on one side of the split: those of one group may be alike."""
    return one.group is None or one.group != other.group


def _digest(pixels: np.ndarray) -> str:
    return hashlib.blake2b(pixels.tobytes() + repr(pixels.shape).encode(), digest_size=16).hexdigest()
