"""Converts a checkpoint of OpenAI's guided-diffusion (ADM, Dhariwal & Nichol 2021) into a UNet that train.py starts from.

python training/convert_adm.py 256x256_diffusion.pt --output adm-256
accelerate launch training/train.py --config paper --pretrained_unet adm-256 --data DATA --output_dir runs/part

The file is a pickle, as all of OpenAI's are. It is read with `weights_only=True`, which rebuilds tensors and plain containers
and is meant to refuse anything that would run code. That was broken twice (CVE-2025-32434, CVE-2026-24747) and is mended in
torch 2.10, before the lowest version that diffad accepts; still convert only files whose origin you trust.

The weights are copied one by one: the converted model computes what the checkpoint's own code computes, epsilon in the first
three channels and the variance interpolation v in the last three. Its feature head is empty and is replaced in training.

Class labels: a class-conditional checkpoint adds one of 1000 ImageNet embeddings to the time embedding, and no label fits an
industrial part. The mean embedding is therefore added to the time embedding's bias, and the converted model has no labels:
it starts as the "average class" and fine-tuning does the rest. A model for several categories starts from the same folder
(`JointUNet2DModel.from_unet(unet, num_class_embeds=K)` adds K label embeddings of zero). `--keep_labels` keeps all 1000.

`64x64_diffusion.pt` was trained on the cosine noise schedule and diffad uses the linear one, so that its timesteps mean other
noise levels; the larger ones fit. Dropout is no weight: the 64x64 and LSUN models were trained with 0.1, the others with none.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffad import JointUNet2DModel


@dataclass(frozen=True)
class AttentionLayout:
    """What no tensor's shape tells: how the channels of the attention layers are split.

    Args:
        num_head_channels: channels of every head (`--num_head_channels` in guided-diffusion).
        num_heads: or heads of every layer (`--num_heads`).
        new_order: rows of the joint projection are q, k, v and each of them its heads (`--use_new_attention_order`);
            otherwise they are the heads, and each head its q, k, v.
    """

    num_head_channels: int | None = None
    num_heads: int | None = None
    new_order: bool = False


# The released models, told apart by the channels of their levels.
RELEASED_LAYOUTS = {
    (192, 384, 576, 768): AttentionLayout(num_head_channels=64, new_order=True),  # 64x64
    (256, 256, 512, 768, 1024): AttentionLayout(num_heads=4),  # 128x128
    (256, 256, 512, 512, 1024, 1024): AttentionLayout(num_head_channels=64),  # 256x256, with and without classes, and LSUN
    (128, 256, 256, 512, 512, 1024, 1024): AttentionLayout(num_head_channels=64),  # 512x512
}

# Names in JointUNet2DModel and in ADM: of single layers, and of the layers inside a block.
SINGLE_LAYERS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
BLOCK_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}


def adm_config(state_dict: Mapping[str, torch.Tensor]) -> dict:
    """Arguments of the JointUNet2DModel that a checkpoint describes, as far as keys and shapes tell: all but the heads.

    Raises:
        ValueError: if the checkpoint is not an ADM image model with learned variance.
    """
    decoder = {int(key.split(".")[1]) for key in state_dict if key.startswith("output_blocks.")}
    if not decoder:
        raise ValueError("not a diffusion model of guided-diffusion (its classifiers, for example, cannot be converted)")
    # The last decoder block of every level but the finest ends with an upsampler: a residual block or a convolution.
    endings = [f"{i}.{layer}.weight" for i in (1, 2) for layer in ("in_layers.0", "conv")]
    upsamplers = [i for i in sorted(decoder) if any(f"output_blocks.{i}.{ending}" in state_dict for ending in endings)]
    levels = 1 + len(upsamplers)
    layers = len(decoder) // levels - 1  # the decoder has one block more per level than the encoder
    first_blocks = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]
    try:
        channels, out_channels = state_dict["input_blocks.0.0.weight"].shape[1], len(state_dict["out.2.bias"])
        block_channels = tuple(len(state_dict[f"{block}.0.out_layers.3.bias"]) for block in first_blocks)
        time_embedding_dim, time_proj_dim = state_dict["time_embed.0.weight"].shape
        embedding_outputs, middle_channels = (
            len(state_dict[f"middle_block.0.{i}.bias"]) for i in ("emb_layers.1", "out_layers.3")
        )
    except KeyError as error:
        raise ValueError(f"the checkpoint lacks {error}") from None
    if out_channels != 2 * channels:
        raise ValueError(
            f"the model maps {channels} to {out_channels} channels; only image models with learned variance can be converted, "
            "no upsamplers"
        )
    has_attention = [f"{block}.1.qkv.weight" in state_dict for block in first_blocks]
    resample = "conv" if f"input_blocks.{layers + 1}.0.op.weight" in state_dict else "resnet"
    down, up = ("DownBlock2D", "UpBlock2D") if resample == "conv" else ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    return {
        "in_channels": channels,
        "block_out_channels": block_channels,
        "down_block_types": tuple("AttnDownBlock2D" if has else down for has in has_attention),
        "up_block_types": tuple("AttnUpBlock2D" if has else up for has in reversed(has_attention)),
        "layers_per_block": layers,
        "time_embedding_dim": time_embedding_dim,
        "time_proj_dim": time_proj_dim,
        "downsample_type": resample,
        "upsample_type": resample,
        "resnet_time_scale_shift": "scale_shift" if embedding_outputs == 2 * middle_channels else "default",
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "num_class_embeds": len(state_dict["label_emb.weight"]) if "label_emb.weight" in state_dict else None,
    }


def convert_adm_state_dict(
    state_dict: Mapping[str, torch.Tensor], layout: AttentionLayout | None = None
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Configuration and weights of the JointUNet2DModel that computes the same, class labels included; no feature head.

    Args:
        state_dict: of ADM's UNetModel. Every tensor of it is used, and its number format kept.
        layout: split of the attention channels; None for the released models.

    Raises:
        ValueError: as in [`adm_config`]; if the layout is not known; or if keys are unknown or missing, or a shape is wrong.
    """
    config = adm_config(state_dict)
    layout = layout or RELEASED_LAYOUTS.get(config["block_out_channels"])
    if layout is None:
        raise ValueError(
            f"levels of {config['block_out_channels']} channels are none of the released models': say how its attention heads "
            "are split (--num_head_channels or --num_heads, and --new_attention_order)"
        )
    config |= {"attention_head_dim": layout.num_head_channels, "num_attention_heads": layout.num_heads}
    with torch.device("meta"):
        model = JointUNet2DModel(**config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("feature_head.")}
    keys = _adm_keys(shapes, config)
    unknown, missing = state_dict.keys() - keys.values(), set(keys.values()) - state_dict.keys()
    if unknown or missing:
        raise ValueError(f"the checkpoint does not fit: unknown keys {sorted(unknown)[:4]}, missing keys {sorted(missing)[:4]}")

    weights = {}
    for name, key in keys.items():
        tensor = state_dict[key]
        if match := re.search(r"\.to_([qkv])\.", name):
            tensor = _split_projection(tensor, layout)["qkv".index(match[1])]
        if re.search(r"\.to_.*\.weight$", name):
            tensor = tensor.flatten(1)  # a 1x1 convolution is a linear layer
        if tensor.shape != shapes[name]:
            raise ValueError(f"the checkpoint does not fit: {key} has shape {tuple(state_dict[key].shape)}")
        weights[name] = tensor
    return config, weights


def fold_label_embedding(config: dict, weights: dict[str, torch.Tensor]) -> tuple[dict, dict[str, torch.Tensor]]:
    """The model without class labels whose time embedding holds the mean label embedding; unchanged where it has none."""
    weights = dict(weights)
    labels = weights.pop("class_embedding.weight", None)
    if labels is not None:
        weights["time_embedding.linear_2.bias"] = weights["time_embedding.linear_2.bias"] + labels.mean(dim=0)
    return config | {"num_class_embeds": None}, weights


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a .pt file, by name. Raises ValueError if it is damaged or holds anything else, such as code."""
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: damaged, or holds more than tensors") from error
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path}: not a state dict of tensors")
    return state_dict


def save_unet(config: dict, weights: Mapping[str, torch.Tensor], folder: Path) -> JointUNet2DModel:
    """Writes a JointUNet2DModel in single precision, with an empty feature head."""
    unet = JointUNet2DModel(**config)
    unet.load_state_dict(unet.feature_head.state_dict(prefix="feature_head.") | weights)
    unet.save_pretrained(folder)
    return unet


def _adm_keys(names: Mapping[str, torch.Size], config: dict) -> dict[str, str]:
    """ADM's key for each of JointUNet2DModel's names."""
    blocks, keys = _adm_blocks(config), {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if module in SINGLE_LAYERS:
            keys[name] = f"{SINGLE_LAYERS[module]}.{kind}"
            continue
        block, layer = re.fullmatch(r"(.+\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+)\.(.+)", module).groups()
        if layer == "conv":
            layer = "op" if "downsamplers" in block else "conv"
        keys[name] = f"{blocks[block]}.{BLOCK_LAYERS.get(layer, layer)}.{kind}"
    return keys


def _adm_blocks(config: dict) -> dict[str, str]:
    """ADM's name for each of JointUNet2DModel's blocks: both number them in the order of computation."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    blocks = {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for level in range(levels):
        start = 1 + level * (layers + 1)
        for i in range(layers):
            blocks[f"down_blocks.{level}.resnets.{i}"] = f"input_blocks.{start + i}.0"
            blocks[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{start + i}.1"
        blocks[f"down_blocks.{level}.downsamplers.0"] = f"input_blocks.{start + layers}.0"

        start = level * (layers + 1)
        for i in range(layers + 1):
            blocks[f"up_blocks.{level}.resnets.{i}"] = f"output_blocks.{start + i}.0"
            blocks[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{start + i}.1"
        last = 2 if config["up_block_types"][level] == "AttnUpBlock2D" else 1
        blocks[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{start + layers}.{last}"
    return blocks


def _split_projection(tensor: torch.Tensor, layout: AttentionLayout) -> tuple[torch.Tensor, ...]:
    """Rows of q, k and v from the joint projection's `(3 C, ...)` weight or bias, heads one after the other in each."""
    channels = len(tensor) // 3
    heads = layout.num_heads or channels // layout.num_head_channels
    if channels != heads * (layout.num_head_channels or channels // heads):
        raise ValueError(f"{channels} attention channels do not split into equal heads under {layout}")
    if layout.new_order:
        return tensor.chunk(3)
    grouped = tensor.unflatten(0, (heads, 3, -1))  # (heads, 3, C / heads, ...)
    return tuple(grouped[:, i].flatten(0, 1) for i in range(3))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert a guided-diffusion checkpoint for train.py --pretrained_unet.")
    parser.add_argument("checkpoint", type=Path, help="the .pt file, such as 256x256_diffusion.pt")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--keep_labels", action="store_true", help="keep the class labels instead of folding their mean")
    heads = parser.add_mutually_exclusive_group()
    heads.add_argument(
        "--num_head_channels", type=int, help="channels per attention head, for models that OpenAI did not release"
    )
    heads.add_argument("--num_heads", type=int, help="or attention heads per layer")
    parser.add_argument("--new_attention_order", action="store_true", help="for models trained with that option")
    options = parser.parse_args(arguments)
    if not options.checkpoint.is_file():
        parser.error(f"{options.checkpoint}: no such file")
    if options.output.exists():
        parser.error(f"--output {options.output} exists already")
    layout = None
    if options.num_head_channels or options.num_heads:
        layout = AttentionLayout(options.num_head_channels, options.num_heads, options.new_attention_order)
    elif options.new_attention_order:
        parser.error("--new_attention_order needs --num_head_channels or --num_heads")
    try:
        state_dict = load_checkpoint(options.checkpoint)
        config, weights = convert_adm_state_dict(state_dict, layout)
    except ValueError as error:
        parser.error(str(error))
    if not options.keep_labels:
        config, weights = fold_label_embedding(config, weights)
    unet = save_unet(config, weights, options.output)
    print(f"wrote {unet.num_parameters() / 1e6:.1f} M parameters to {options.output}")


if __name__ == "__main__":
    main()
