"""What good parts look like at further scales: on a coarse grid with a deeper level, and in the image enlarged."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config

from .float32 import Float32ModelMixin
from .gaussian import PadimGaussian
from .moments import StreamingMoments

COARSE_DIMS = 128


class _Standardized(torch.nn.Module):
    """Standardises the channels of raw features."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("channel_mean", torch.zeros(channels))
        self.register_buffer("channel_std", torch.ones(channels))

    def set_statistics(self, features: torch.Tensor) -> None:
        """Sets what standardises the channels, from raw features `(n, channels, h, w)` of good images."""
        std = features.std(dim=(0, 2, 3))
        self.channel_mean.copy_(features.mean(dim=(0, 2, 3)))
        self.channel_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def standardized(self, features: torch.Tensor) -> torch.Tensor:
        """Raw features `(batch, channels, h, w)` with mean 0 and variance 1 per channel on good images."""
        return (features.float() - self.channel_mean.view(1, -1, 1, 1)) / self.channel_std.view(1, -1, 1, 1)


class ScaleGaussian(_Standardized):
    """A Gaussian of features whose channels are standardised and, where they are many, projected first.

    Args:
        channels: of the features.
        dims: random orthogonal directions, drawn by `seed`, onto which channels are projected; None keeps the channels.
        gaussian: settings of the [`PadimGaussian`] of what is left.
    """

    def __init__(self, channels: int, dims: int | None, seed: int, **gaussian: Any):
        super().__init__(channels)
        if dims is None or dims >= channels:
            self.projection = None
        else:
            generator = torch.Generator().manual_seed(seed)
            matrix = torch.randn(channels, dims, dtype=torch.float64, generator=generator, device="cpu")
            # Scaled so that the variance of a projected channel is that of a channel.
            scaled = torch.linalg.qr(matrix).Q * (channels / dims) ** 0.5
            self.register_buffer("projection", scaled.float())  # (channels, dims)
        dims = channels if self.projection is None else dims
        rank = min(gaussian.pop("rank"), dims - 1)
        self.gaussian = PadimGaussian(dims, rank=rank, seed=seed, **gaussian)

    def accumulate(self, moments: StreamingMoments, features: torch.Tensor) -> None:
        """Adds raw features `(batch, channels, h, w)` of good images to `moments`, of `gaussian.new_moments()`."""
        self.gaussian.accumulate(moments, self._projected(features))

    def forward(self, features: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """Squared Mahalanobis distances `(batch, h, w)` of raw features `(batch, channels, h, w)`."""
        return self.gaussian(self._projected(features), category)

    def _projected(self, features: torch.Tensor) -> torch.Tensor:
        standardized = self.standardized(features)
        return standardized if self.projection is None else (standardized.movedim(1, 3) @ self.projection).movedim(3, 1)


class ScaleNeighbors(_Standardized):
    """Distance to the nearest of some good images at the same place, give or take one position; for parts in several poses.

    Features are means over 3x3 positions, as in PatchCore (Roth et al. 2022), whose neighbours may lie anywhere.

    Args:
        channels: of the features.
        grid: `(height, width)` of the features.
        images: how many good images are kept of each category.
        num_classes: categories.
    """

    def __init__(self, channels: int, grid: tuple[int, int], images: int, num_classes: int):
        super().__init__(channels)
        self.images = images
        # The images of one category behind those of the other.
        self.register_buffer("bank", torch.zeros(num_classes * images, channels, *grid))

    def fit(self, features: torch.Tensor, category: int = 0) -> None:
        """Keeps raw features `(images, channels, h, w)` of one category's good images; fewer are repeated."""
        kept = self._pooled(features)[torch.arange(self.images) % len(features)]
        self.bank[category * self.images : (category + 1) * self.images] = kept

    def forward(self, features: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """Squared distances `(batch, h, w)` of raw features `(batch, channels, h, w)`."""
        bank = self.bank.view(-1, self.images, *self.bank.shape[1:])  # (K, n, C, h, w)
        if category is not None:
            bank = bank[category : category + 1] if isinstance(category, int) else bank[category]
        pooled = self._pooled(features)
        height, width = pooled.shape[-2:]
        vectors = pooled.flatten(2).transpose(1, 2)[:, :, None]  # (B, h w, 1, C)
        padded = F.pad(bank.flatten(0, 1), (1, 1, 1, 1), mode="replicate").unflatten(0, bank.shape[:2])
        nearest = []
        for top in range(3):
            for left in range(3):
                shifted = padded[..., top : top + height, left : left + width].flatten(3).permute(0, 3, 1, 2)  # (K, h w, n, C)
                products = (vectors @ shifted.transpose(2, 3))[:, :, 0]  # (B, h w, n)
                nearest.append((shifted.square().sum(dim=3) - 2 * products).amin(dim=2))
        distance = torch.stack(nearest).amin(dim=0) + vectors[:, :, 0].square().sum(dim=2)  # (B, h w)
        return distance.clamp_min(0).unflatten(1, (height, width))  # below 0 only by rounding

    def _pooled(self, features: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(self.standardized(features), (1, 1, 1, 1), mode="replicate"), 3, stride=1)


class MultiscaleFeatures(Float32ModelMixin, ConfigMixin):
    """Distances to good parts at further scales, under the names of the score's terms (ours, not the paper's).

    A coarse grid with a deeper level sees what is large or in a wrong place; an image of twice the size, what is small.

    Args:
        feature_channels, coarse_channels: of the extractor's fine and coarse features.
        grid: `(height, width)` of the fine features, which `coarse` halves; None for one Gaussian shared by all positions.
        scales: which there are, of `coarse`, `detail` (fine features of the enlarged image), `coarse_detail` and `neighbors`
            (nearest good images to `detail`).
        regularization, pooling, rank, shared_whitening: of the Gaussian of fine features.
        coarse_regularization, coarse_pooling, coarse_rank: of those of coarse features; the rank is `rank` where None.
        neighbor_images: good images that `neighbors` keeps of each category.
        seed: of the projection of coarse features.
        num_classes: categories, each with what is its own.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["coarse", "detail", "coarse_detail", "neighbors"]

    @register_to_config
    def __init__(
        self,
        feature_channels: int,
        coarse_channels: int,
        grid: tuple[int, int] | None,
        scales: tuple[str, ...] = ("coarse", "detail", "coarse_detail"),
        regularization: float = 0.5,
        pooling: float = 0.0,
        rank: int = 64,
        coarse_regularization: float = 0.1,
        coarse_pooling: float = 0.2,
        neighbor_images: int = 32,
        seed: int = 0,
        num_classes: int = 1,
        shared_whitening: float | None = None,
        coarse_rank: int | None = None,
    ):
        super().__init__()
        coarse_grid = None if grid is None else tuple(max(1, side // 2) for side in grid)
        common = {"seed": seed, "num_classes": num_classes}
        conditioning = {"regularization": regularization, "pooling": pooling, "shared_whitening": shared_whitening}
        fine = {**common, **conditioning, "grid": grid, "rank": rank}
        coarse = {**common, "grid": coarse_grid, "regularization": coarse_regularization, "pooling": coarse_pooling}
        coarse["rank"] = rank if coarse_rank is None else coarse_rank
        for name in scales:
            if name == "neighbors":
                self.neighbors = ScaleNeighbors(feature_channels, grid, neighbor_images, num_classes)
            elif name == "detail":
                self.detail = ScaleGaussian(feature_channels, None, **fine)
            else:
                setattr(self, name, ScaleGaussian(coarse_channels, COARSE_DIMS, **coarse))

    def check_state(self) -> None:
        super().check_state()
        for name in self.config.scales:
            scale = getattr(self, name)
            if not (scale.channel_std > 0).all():
                raise ValueError(f"{name}.channel_std is not positive")
            if name != "neighbors":
                scale.gaussian.check_state()

    def with_only(self, scales: Sequence[str]) -> "MultiscaleFeatures":
        """The same without the other scales."""
        own = {name: value for name, value in self.config.items() if not name.startswith("_")}
        kept = tuple(scale for scale in self.config.scales if scale in scales)
        reduced = MultiscaleFeatures(**{**own, "scales": kept})
        reduced.load_state_dict({k: v for k, v in self.state_dict().items() if k.partition(".")[0] in scales})
        return reduced.to(self.device)

    def forward(self, scale: str, features: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """Squared distances `(batch, h, w)` of raw features `(batch, C, h, w)` at one scale."""
        return getattr(self, scale)(features, category)
