"""Gaussians of the features of good parts at further scales: a coarse grid with a deeper level, and the image enlarged."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

from .float32 import Float32ModelMixin
from .gaussian import PadimGaussian
from .moments import StreamingMoments

COARSE_DIMS = 128


class ScaleGaussian(torch.nn.Module):
    """A Gaussian of features whose channels are standardised and, where they are many, projected first.

    Args:
        channels: of the features.
        dims: random orthogonal directions, drawn by `seed`, onto which channels are projected; None keeps the channels.
        gaussian: settings of the [`PadimGaussian`] of what is left.
    """

    def __init__(self, channels: int, dims: int | None, seed: int, **gaussian):
        super().__init__()
        self.register_buffer("channel_mean", torch.zeros(channels))
        self.register_buffer("channel_std", torch.ones(channels))
        if dims is None or dims >= channels:
            self.projection = None
        else:
            matrix = torch.randn(
                channels, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), device="cpu"
            )
            # Scaled so that the variance of a projected channel is that of a channel.
            scaled = torch.linalg.qr(matrix).Q * (channels / dims) ** 0.5
            self.register_buffer("projection", scaled.float())  # (channels, dims)
        dims = channels if self.projection is None else dims
        rank = min(gaussian.pop("rank"), dims - 1)
        self.gaussian = PadimGaussian(dims, rank=rank, seed=seed, **gaussian)

    def set_statistics(self, features: torch.Tensor) -> None:
        """Sets what standardises the channels, from raw features `(n, channels, h, w)` of good images."""
        std = features.std(dim=(0, 2, 3))
        self.channel_mean.copy_(features.mean(dim=(0, 2, 3)))
        self.channel_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def accumulate(self, moments: StreamingMoments, features: torch.Tensor) -> None:
        """Adds raw features `(batch, channels, h, w)` of good images to `moments`, of `gaussian.new_moments()`."""
        self.gaussian.accumulate(moments, self._standardized(features))

    def forward(self, features: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """Squared Mahalanobis distances `(batch, h, w)` of raw features `(batch, channels, h, w)`."""
        return self.gaussian(self._standardized(features), category)

    def _standardized(self, features: torch.Tensor) -> torch.Tensor:
        standardized = (features.float() - self.channel_mean.view(1, -1, 1, 1)) / self.channel_std.view(1, -1, 1, 1)
        if self.projection is None:
            return standardized
        return (standardized.movedim(1, 3) @ self.projection).movedim(3, 1)


class MultiscaleGaussian(Float32ModelMixin, ConfigMixin):
    """One [`ScaleGaussian`] for each scale, under the names of the score's terms (ours, not the paper's).

    A coarse grid with a deeper level sees what is large or in a wrong place; an image of twice the size, what is small.

    Args:
        feature_channels, coarse_channels: of the extractor's fine and coarse features.
        grid: `(height, width)` of the fine features, which `coarse` halves; None for one Gaussian shared by all positions.
        scales: which there are, of `coarse`, `detail` (fine features of the enlarged image) and `coarse_detail`.
        regularization, rank: of the Gaussian of fine features.
        coarse_regularization, coarse_pooling: of those of coarse features.
        seed: of the projection of coarse features.
        num_classes: categories with Gaussians of their own.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["coarse", "detail", "coarse_detail"]

    @register_to_config
    def __init__(
        self,
        feature_channels: int,
        coarse_channels: int,
        grid: tuple[int, int] | None,
        scales: tuple[str, ...] = ("coarse", "detail", "coarse_detail"),
        regularization: float = 0.5,
        rank: int = 64,
        coarse_regularization: float = 0.1,
        coarse_pooling: float = 0.2,
        seed: int = 0,
        num_classes: int = 1,
    ):
        super().__init__()
        coarse_grid = None if grid is None else tuple(max(1, side // 2) for side in grid)
        common = {"seed": seed, "num_classes": num_classes, "rank": rank}
        coarse = {**common, "grid": coarse_grid, "regularization": coarse_regularization, "pooling": coarse_pooling}
        for name in scales:
            if name == "detail":
                self.detail = ScaleGaussian(feature_channels, None, grid=grid, regularization=regularization, **common)
            else:
                setattr(self, name, ScaleGaussian(coarse_channels, COARSE_DIMS, **coarse))

    def check_state(self) -> None:
        super().check_state()
        for name in self.config.scales:
            getattr(self, name).gaussian.check_state()
            if not (getattr(self, name).channel_std > 0).all():
                raise ValueError(f"{name}.channel_std is not positive")

    def forward(self, scale: str, features: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """Squared Mahalanobis distances `(batch, h, w)` of raw features `(batch, C, h, w)` at one scale."""
        return getattr(self, scale)(features, category)
