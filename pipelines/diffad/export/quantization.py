"""Graphs whose convolutions compute in 8 bits."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

FEWEST_CHANNELS = 4  # of a network's convolutions; those that smooth maps have one
LARGEST_FOLDED = 1 << 20  # numbers of a constant that is computed with before quantisation


def quantized(model: "onnx.ModelProto", images: Sequence[Mapping[str, np.ndarray]]) -> "onnx.ModelProto":
    """Quantises the convolutions of a graph to 8 bits after training, with NNCF.

    Args:
        images: inputs of the graph from good images, from which the ranges of activations are taken.

    Raises:
        ModuleNotFoundError: naming the package where it is not installed.
    """
    try:
        import nncf
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--precision int8 needs the package nncf: pip install 'diffad[export]'") from None
    from onnxscript.optimizer import optimize

    nncf.set_log_level(logging.WARNING)
    # What is made of the timestep is the same for every image. NNCF fails at such layers, which have no input but constants.
    model = optimize(model, num_iterations=1, onnx_shape_inference=False, input_size_limit=LARGEST_FOLDED)
    # All else stays in float: distances to good parts are differences of large numbers, which 8 bits don't hold, and scores
    # would be clipped to what good parts have.
    in_float = sorted({node.op_type for node in model.graph.node} - {"Conv"})
    return nncf.quantize(
        model,
        nncf.Dataset(list(images)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(types=in_float, names=_of_maps(model), validate=False),
    )


def _of_maps(model: "onnx.ModelProto") -> list[str]:
    """Names of the convolutions that smooth maps."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    constants = {node.output[0]: node.attribute[0].t.dims for node in model.graph.node if node.op_type == "Constant"}
    shapes |= {name: dims for name, dims in constants.items() if dims}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and shapes.get(node.input[1], [FEWEST_CHANNELS])[0] < FEWEST_CHANNELS
    ]
