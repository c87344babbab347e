"""Stores weights in half the space where nothing is lost by it."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

SMALLEST = 1024  # elements, below which it is not worth a node


def store_in_half(model: "onnx.ModelProto") -> int:
    """Replaces float32 weights whose every value float16 holds exactly by float16 and a cast; returns how many.

    The graph computes the same, bit for bit: runtimes fold the cast as they load the file.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts, kept = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor) if tensor.data_type == TensorProto.FLOAT else None
        if values is None or values.size < SMALLEST or not _fits_in_half(values):
            kept.append(tensor)
            continue
        name = f"{tensor.name}.float16"
        kept.append(numpy_helper.from_array(values.astype(np.float16), name))
        casts.append(helper.make_node("Cast", [name], [tensor.name], f"{tensor.name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    for field, values in ((model.graph.initializer, kept), (model.graph.node, nodes)):
        del field[:]
        field.extend(values)
    return len(casts)


def _fits_in_half(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float16).astype(np.float32), values)
