"""UNet2DModel with a feature head: one pass gives epsilon, the variance channels and the predicted features."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

from .saved_state import ChecksSavedState


@dataclass
class JointUNet2DOutput(BaseOutput):
    """Output of [`JointUNet2DModel`].

    Args:
        sample: `(batch, 2 * in_channels, height, width)`, predicted noise or clean image, then the variance interpolation v.
        features: `(batch, feature_channels, height // feature_stride, width // feature_stride)`, standardised features
            of the clean image.
    """

    sample: torch.Tensor
    features: torch.Tensor


class FeatureHead(nn.Module):
    """GroupNorm, SiLU, 1x1 convolution on a decoder block (the paper's head).

    Starts at zero: standardised targets have mean zero, so the first prediction is the mean feature and the pretrained
    decoder below is not disturbed.
    """

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, eps: float):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, in_channels, eps=eps)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, hidden: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        hidden = F.silu(self.norm(hidden))  # (B, C, h', w')
        # Resizing first is cheaper where it shrinks and commutes with a 1x1 convolution.
        if hidden.shape[-2] > size[0]:
            hidden = F.adaptive_avg_pool2d(hidden, size)
        elif hidden.shape[-2] < size[0]:
            hidden = F.interpolate(hidden, size=size, mode="bilinear", align_corners=False)
        return self.conv(hidden)  # (B, D, h, w)


class JointUNet2DModel(ChecksSavedState, UNet2DModel):
    """UNet2DModel that also rebuilds the features of the clean image from the noisy one (joint model of Sec. 3.2).

    Args beyond those of [`UNet2DModel`], which keep their meaning and defaults:
        feature_channels: channels D of the predicted features.
        feature_stride: image pixels per feature position.
        feature_block: index of the decoder block (0 is the coarsest) whose output feeds the head.
        patch_size: side of the pixel patches folded into channels before, and unfolded after the network. 1 works on
            pixels like the paper; 4 costs a sixteenth of the arithmetic at the same image size.
        num_attention_heads: heads of every attention layer, instead of heads of `attention_head_dim` channels.
        time_proj_dim: channels of the sinusoidal time embedding; None is `block_out_channels[0]`.

    `in_channels` counts image channels; the output always has twice as many (noise and variance). Height and width must
    be divisible by `stride`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        feature_channels: int = 272,
        feature_stride: int = 4,
        feature_block: int = -2,
        patch_size: int = 1,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 2,
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        num_class_embeds: int | None = None,
        num_attention_heads: int | None = None,
        time_proj_dim: int | None = None,
    ):
        # The undecorated constructor: the decorated one would overwrite this class's config with the folded channels.
        UNet2DModel.__init__.__wrapped__(
            self,
            sample_size=sample_size,
            in_channels=in_channels * patch_size**2,
            out_channels=2 * in_channels * patch_size**2,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            time_embedding_dim=time_embedding_dim,
            freq_shift=freq_shift,
            flip_sin_to_cos=flip_sin_to_cos,
            mid_block_scale_factor=mid_block_scale_factor,
            downsample_padding=downsample_padding,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            dropout=dropout,
            act_fn=act_fn,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            norm_eps=norm_eps,
            resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention,
            num_class_embeds=num_class_embeds,
        )
        # UNet2DModel cannot express these two, which some of OpenAI's checkpoints need.
        if time_proj_dim is not None:
            self.time_proj = Timesteps(time_proj_dim, flip_sin_to_cos, freq_shift)
            self.time_embedding = TimestepEmbedding(time_proj_dim, self.time_embedding.linear_2.out_features)
        if num_attention_heads is not None:
            for module in self.modules():
                if isinstance(module, Attention):
                    module.heads = num_attention_heads
        if any(hasattr(block, "skip_conv") for block in (*self.down_blocks, *self.up_blocks)):
            raise ValueError("skip blocks (SkipDownBlock2D and the like) are not supported by JointUNet2DModel")
        if not -len(up_block_types) <= feature_block < len(up_block_types):
            raise ValueError(f"feature_block {feature_block} is not one of the {len(up_block_types)} decoder blocks")
        decoder_channels = tuple(reversed(block_out_channels))
        self.feature_block_index = feature_block % len(up_block_types)
        self.feature_head = FeatureHead(decoder_channels[self.feature_block_index], feature_channels, norm_num_groups, norm_eps)
        self.stride = patch_size * 2 ** (len(block_out_channels) - 1)

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` of the images that it was built for."""
        size = self.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def output_stride(self) -> int:
        """Pixels by which the sides of its images are divisible: the feature head has a grid of its own."""
        return math.lcm(self.stride, self.config.feature_stride)

    @classmethod
    def from_unet(cls, unet: UNet2DModel, **joint_config: Any) -> "JointUNet2DModel":
        """Wraps a trained UNet2DModel or joint model: the same prediction under a new feature head.

        A part that the trained model lacks starts without effect: v = 0 where it had no variance, class embeddings of zero
        where it had no labels or gets new ones.

        Args:
            unet: predicts as many output channels as it has input channels, or twice as many (learned variance).
            joint_config: settings of the joint model that replace or complete those of `unet`, such as
                `feature_channels`, `sample_size` and `dropout`, or `num_class_embeds` to condition it on new classes, in place
                of its own if it had any.

        Raises:
            ValueError: if the UNet's configuration has no counterpart here, or its weights do not fit `joint_config`.
        """
        is_joint = isinstance(unet, JointUNet2DModel)
        channels = unet.config.in_channels
        if not is_joint:
            if unet.config.out_channels not in (channels, 2 * channels):
                raise ValueError(
                    f"the UNet maps {channels} to {unet.config.out_channels} channels; need {channels} or {2 * channels}"
                )
            if (
                unet.config.time_embedding_type != "positional"
                or unet.config.class_embed_type
                or unet.config.center_input_sample
            ):
                raise ValueError(
                    "only UNets with positional time embedding, label embedding and uncentered input can be wrapped"
                )
        accepted = cls._get_init_keys(cls)
        joint = cls(**{name: value for name, value in unet.config.items() if name in accepted} | joint_config)

        weights = unet.state_dict()
        if not is_joint:
            for name in ("conv_out.weight", "conv_out.bias"):
                weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])[: 2 * channels]
        if joint_config.get("num_class_embeds") is not None:
            weights["class_embedding.weight"] = torch.zeros_like(joint.class_embedding.weight)
        weights |= joint.feature_head.state_dict(prefix="feature_head.")
        misfits = _named_shapes(weights) ^ _named_shapes(joint.state_dict())
        if misfits:
            names = sorted({name for name, _ in misfits})
            raise ValueError(f"the UNet's weights do not fit the joint model's settings: {', '.join(names[:4])}, ...")
        joint.load_state_dict(weights)
        return joint.to(unet.device, unet.dtype).train(unet.training)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> JointUNet2DOutput | tuple[torch.Tensor, torch.Tensor]:
        """One pass of the joint model.

        Args:
            sample: `(batch, in_channels, height, width)` noisy images.
            timestep: one timestep for all, or `(batch,)`.
            class_labels: `(batch,)` integers, needed exactly when the model has `num_class_embeds`.
            return_dict: whether to return a [`JointUNet2DOutput`] instead of `(sample, features)`.

        Raises:
            ValueError: if the size is not divisible by `stride` and `feature_stride`, or labels are missing or not wanted.
        """
        height, width = sample.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"image size {height}x{width} is not divisible by the UNet's stride of {self.stride}")
        if height % self.config.feature_stride or width % self.config.feature_stride:
            raise ValueError(f"image size {height}x{width} is not divisible by feature_stride {self.config.feature_stride}")
        feature_size = (height // self.config.feature_stride, width // self.config.feature_stride)

        embedding = self._embed(timestep, class_labels, sample)  # (B, E)
        hidden = F.pixel_unshuffle(sample, self.config.patch_size)  # (B, C p^2, H/p, W/p)
        hidden = self.conv_in(hidden)  # (B, c, H/p, W/p)

        skips = (hidden,)
        for block in self.down_blocks:
            hidden, block_skips = block(hidden_states=hidden, temb=embedding)
            skips += block_skips
        hidden = self.mid_block(hidden, embedding)  # (B, c', H/stride, W/stride)

        for index, block in enumerate(self.up_blocks):
            count = len(block.resnets)
            hidden = block(hidden, skips[-count:], embedding)
            skips = skips[:-count]
            if index == self.feature_block_index:
                features = self.feature_head(hidden, feature_size)  # (B, D, h, w)

        hidden = self.conv_act(self.conv_norm_out(hidden))
        output = F.pixel_shuffle(self.conv_out(hidden), self.config.patch_size)  # (B, 2 C, H, W)
        if not return_dict:
            return output, features
        return JointUNet2DOutput(sample=output, features=features)

    def _embed(self, timestep, class_labels: torch.Tensor | None, sample: torch.Tensor) -> torch.Tensor:
        if (class_labels is None) != (self.class_embedding is None):
            wanted = "needs" if class_labels is None else "was built without"
            raise ValueError(f"this UNet {wanted} class labels")
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        embedding = self.time_embedding(self.time_proj(timesteps).to(self.dtype))
        if class_labels is not None:
            embedding = embedding + self.class_embedding(class_labels).to(self.dtype)
        return embedding  # (B, E)


def _named_shapes(weights: dict[str, torch.Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in weights.items()}
