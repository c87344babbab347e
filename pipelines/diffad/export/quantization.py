"""Graphs whose convolutions compute in 8 bits."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

# Distances to good parts are differences of large numbers, which 8 bits don't hold; they and the verdict stay in float.
IN_FLOAT = ["MatMul", "Gemm"]


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
    nncf.set_log_level(logging.WARNING)
    return nncf.quantize(
        model,
        nncf.Dataset(list(images)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(types=IN_FLOAT, validate=False),
    )
