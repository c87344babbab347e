"""A denoiser of the extractor's features and of a thumbnail: a second, small diffusion model that waits for no full image."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from .float32 import Float32ModelMixin
from .gaussian import PadimGaussian

TIME_CHANNELS = 64
NORM_GROUPS = 16
IMAGE_CHANNELS = 3


class FeatureDenoiser(Float32ModelMixin, ConfigMixin):
    """Rebuilds a good part's features and thumbnail from noisy ones, and knows what it gets wrong on good parts.

    Diffusion in the space of the frozen extractor's features (ours, not the paper's, whose joint UNet predicts features from
    noisy pixels), together with the image's colours averaged over small squares, which show what features miss. Everything
    lies on the grid of the features: x_0 is predicted by residual blocks after neighbouring positions are folded into channels,
    so that a pass costs a fifth of one of the `cpu-small` UNet.

    Args:
        feature_channels: channels D of the features.
        grid: `(height, width)` of the features for Gaussians of the errors at every position; None for those that all share.
        timestep: noise level at which a part is judged, of the full chain.
        thumbnails: squares per side of a feature's position over which colours are averaged: C = D + 3 thumbnails^2 channels.
        width: channels of the residual blocks, a multiple of 16.
        num_blocks: how many residual blocks there are.
        fold: side of the square of positions that are folded into channels; the grid is divisible by it.
        num_classes: categories, each with an embedding and Gaussians of its own.
        regularization, pooling, rank, shared_whitening: of the [`PadimGaussian`] of the features' errors.
        pixel_regularization: of that of the thumbnail's errors.

    Raises:
        ValueError: if a setting is out of its range.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = [
        *("pixel_mean", "pixel_std", "time_embedding", "category_embedding"),
        *("conv_in", "resnets", "norm_out", "conv_out", "gaussian", "pixel_gaussian"),
    ]

    @register_to_config
    def __init__(
        self,
        feature_channels: int,
        grid: tuple[int, int] | None,
        timestep: int = 600,
        thumbnails: int = 2,
        width: int = 256,
        num_blocks: int = 4,
        fold: int = 2,
        num_classes: int = 1,
        regularization: float = 0.5,
        pooling: float = 0.0,
        rank: int | None = None,
        pixel_regularization: float = 0.1,
        shared_whitening: float | None = None,
    ):
        super().__init__()
        if grid is not None and any(side % fold for side in grid):
            raise ValueError(f"the grid {grid[0]}x{grid[1]} of features is not divisible by fold {fold}")
        pixel_channels = IMAGE_CHANNELS * thumbnails**2
        self.channels = feature_channels + pixel_channels
        self.register_buffer("pixel_mean", torch.zeros(IMAGE_CHANNELS))
        self.register_buffer("pixel_std", torch.ones(IMAGE_CHANNELS))
        self.time_proj = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(TIME_CHANNELS, width)
        self.category_embedding = nn.Embedding(num_classes, width) if num_classes > 1 else None
        self.conv_in = nn.Conv2d(self.channels * fold**2, width, kernel_size=1)
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=width, out_channels=width, temb_channels=width, groups=NORM_GROUPS)
            for _ in range(num_blocks)
        )
        self.norm_out = nn.GroupNorm(NORM_GROUPS, width)
        self.conv_out = nn.Conv2d(width, self.channels * fold**2, kernel_size=1)
        # All channels are standardised: the first prediction is their mean.
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        self.gaussian = PadimGaussian(
            feature_channels,
            grid,
            regularization=regularization,
            pooling=pooling,
            rank=rank,
            num_classes=num_classes,
            shared_whitening=shared_whitening,
        )
        self.pixel_gaussian = PadimGaussian(pixel_channels, grid, regularization=pixel_regularization, num_classes=num_classes)

    def check_state(self) -> None:
        super().check_state()
        if not (self.pixel_std > 0).all():
            raise ValueError("pixel_std is not positive")
        for name in ("gaussian", "pixel_gaussian"):
            try:
                getattr(self, name).check_state()
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None

    def set_pixel_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Stores mean and standard deviation `(3,)` of good images in [-1, 1]; a colour without spread keeps its scale."""
        self.pixel_mean.copy_(mean)
        self.pixel_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def clean(self, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """What is noised and rebuilt, `(B, C, h, w)`, from standardised features `(B, D, h, w)` and images in [-1, 1].

        Raises:
            ValueError: if the images' sides are not a multiple of the grid's, or of the thumbnail's.
        """
        grid, thumbnails = features.shape[-2:], self.config.thumbnails
        stride = images.shape[-1] // grid[1]
        if tuple(images.shape[-2:]) != (grid[0] * stride, grid[1] * stride) or stride % thumbnails:
            raise ValueError(
                f"images of {tuple(images.shape[-2:])} have no thumbnail of {thumbnails} squares at each side of a position of "
                f"{tuple(grid)} features"
            )
        colors = F.avg_pool2d(images.float(), stride // thumbnails)
        colors = (colors - self.pixel_mean.view(1, -1, 1, 1)) / self.pixel_std.view(1, -1, 1, 1)
        return torch.cat([features, F.pixel_unshuffle(colors, thumbnails)], dim=1)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, category: torch.Tensor | int | None = None) -> torch.Tensor:
        """Predicts what is clean, `(B, C, h, w)`.

        Args:
            noisy: `(B, C, h, w)`, of [`~FeatureDenoiser.clean`], noised to `timesteps`.
            timesteps: integers `(B,)`, or `(1,)` for all.
            category: one for all images, or integers `(B,)` or `(1,)`; needed where there are several.

        Raises:
            ValueError: if the grid is not divisible by `fold`, or the category is missing.
        """
        if any(side % self.config.fold for side in noisy.shape[-2:]):
            raise ValueError(f"features of {tuple(noisy.shape[-2:])} are not divisible by fold {self.config.fold}")
        embedding = self.time_embedding(self.time_proj(timesteps))  # (B or 1, E)
        if self.category_embedding is not None:
            if category is None:
                raise ValueError(f"a denoiser of {self.config.num_classes} categories needs the category of the images")
            if isinstance(category, int):
                category = torch.full((1,), category, device=noisy.device)
            embedding = embedding + self.category_embedding(category)
        hidden = F.pixel_unshuffle(noisy, self.config.fold)  # (B, C fold^2, h / fold, w / fold)
        # Convolutions run about half as long again on a CPU in the other layout
        hidden = self.conv_in(hidden.contiguous(memory_format=torch.channels_last))
        for resnet in self.resnets:
            hidden = resnet(hidden, embedding)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(hidden))), self.config.fold)

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, C, h, w)` as what is of features, `(B, D, h, w)`, and what is of the thumbnail."""
        return values[:, : self.config.feature_channels], values[:, self.config.feature_channels :]
