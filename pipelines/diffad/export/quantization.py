"""Graphs whose diffusion models compute in 8 bits."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

DIFFUSION_MODELS = {"unet", "feature_denoiser"}  # parts of the names of their weights
LARGEST_FOLDED = 1 << 20  # numbers of a constant that is computed with before quantisation


def quantized(model: "onnx.ModelProto", images: Sequence[Mapping[str, np.ndarray]]) -> "onnx.ModelProto":
    """Quantises the convolutions of a graph's diffusion models to 8 bits after training, with NNCF.

    All else stays in float. Distances to good parts are differences of large numbers, which 8 bits don't hold, and scores would
    be clipped to what good parts have. Features in 8 bits are off by many standard deviations of good parts' scores.

    Args:
        images: inputs of the graph from good images, from which the ranges of activations are taken.

    Raises:
        ModuleNotFoundError: naming the package where it is not installed.
        ValueError: if the graph has no diffusion model.
    """
    try:
        import nncf
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--precision int8 needs the package nncf: pip install 'diffad[export]'") from None
    from onnxscript.optimizer import optimize

    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    others = [node.name for node in convolutions if DIFFUSION_MODELS.isdisjoint(node.input[1].split("."))]
    if len(others) == len(convolutions):
        raise ValueError("the score asks no diffusion model, and only these are computed in 8 bits; export it in fp32")
    nncf.set_log_level(logging.WARNING)
    # What is made of the timestep is the same for every image. NNCF fails at such layers, which have no input but constants.
    model = optimize(model, num_iterations=1, onnx_shape_inference=False, input_size_limit=LARGEST_FOLDED)
    in_float = sorted({node.op_type for node in model.graph.node} - {"Conv"})
    return nncf.quantize(
        model,
        nncf.Dataset(list(images)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(types=in_float, names=others, validate=False),
    )
