"""The published architecture of OpenAI's guided-diffusion (ADM), in plain torch on the published names, with random weights."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-5)


class Resample(nn.Module):
    """Halves or doubles the sides, with a 3x3 convolution (`op` or `conv`) or without."""

    def __init__(self, up: bool, channels: int = 0):
        super().__init__()
        self.up = up
        if channels:
            convolution = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)
            self.add_module("conv" if up else "op", convolution)

    def forward(self, x, embedding=None):
        if self.up:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            return self.conv(x) if hasattr(self, "conv") else x
        return self.op(x) if hasattr(self, "op") else F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, embedding: int, scale_shift: bool, resample: str | None = None):
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = Resample(up=resample == "up") if resample else nn.Identity()
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels * (2 if scale_shift else 1)))
        convolution = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(group_norm(out_channels), nn.SiLU(), nn.Dropout(0.3), convolution)
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, embedding):
        norm, silu, convolution = self.in_layers
        h = convolution(self.resample(silu(norm(x))))
        condition = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + condition)
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, heads: int, new_order: bool):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, embedding=None):
        batch, channels = x.shape[:2]
        size = channels // self.heads
        rows = self.qkv(self.norm(x.flatten(2)))
        attended = []
        for head in range(self.heads):
            # Where q, k and v of this head begin among the 3 C rows.
            starts = (
                [i * channels + head * size for i in range(3)] if self.new_order else [(3 * head + i) * size for i in range(3)]
            )
            q, k, v = (rows[:, start : start + size] for start in starts)
            weights = (q.transpose(1, 2) @ k / math.sqrt(size)).softmax(dim=-1)  # (B, query, key)
            attended.append(v @ weights.transpose(1, 2))
        return x + self.proj_out(torch.cat(attended, dim=1)).view_as(x)


class Adm(nn.Module):
    def __init__(
        self,
        model_channels: int = 64,  # two channels per group, so that a bias before a norm matters
        channel_mult: tuple[float, ...] = (1, 2),
        num_res_blocks: int = 1,
        attention_levels: tuple[int, ...] = (1,),
        num_classes: int | None = None,
        num_heads: int | None = None,
        num_head_channels: int = 16,
        new_order: bool = False,
        scale_shift: bool = True,
        resblock_updown: bool = True,
        in_channels: int = 3,
        out_channels: int = 6,
    ):
        super().__init__()
        self.model_channels = model_channels
        embedding = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, embedding)

        def residual(channels, out_channels, resample=None):
            return ResBlock(channels, out_channels, embedding, scale_shift, resample)

        def attention(channels):
            return AttentionBlock(channels, num_heads or channels // num_head_channels, new_order)

        widths = [int(mult * model_channels) for mult in channel_mult]
        channels = widths[0]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(in_channels, channels, 3, padding=1)])])
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                block = [residual(channels, width)] + ([attention(width)] if level in attention_levels else [])
                self.input_blocks.append(nn.ModuleList(block))
                channels = width
                skips.append(channels)
            if level + 1 < len(widths):
                down = residual(channels, channels, "down") if resblock_updown else Resample(False, channels)
                self.input_blocks.append(nn.ModuleList([down]))
                skips.append(channels)
        self.middle_block = nn.ModuleList([residual(channels, channels), attention(channels), residual(channels, channels)])
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                block = [residual(channels + skips.pop(), width)] + ([attention(width)] if level in attention_levels else [])
                channels = width
                if level and i == num_res_blocks:
                    block.append(residual(channels, channels, "up") if resblock_updown else Resample(True, channels))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(self, x, timesteps, labels=None):
        half = self.model_channels // 2
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(x))
        if labels is not None:
            embedding = embedding + self.label_emb(labels)
        skips = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, embedding)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, embedding)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in block:
                x = layer(x, embedding)
        return self.out(x)


def trained(**options) -> Adm:
    """Every weight is random, those that start at zero or one included."""
    torch.manual_seed(0)
    adm = Adm(**options)
    for name, parameter in adm.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and name.endswith("weight")), std=fan_in**-0.5)
    return adm.eval()
