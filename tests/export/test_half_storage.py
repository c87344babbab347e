"""Weights in half the space: only where nothing is lost."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def model_of(**weights: np.ndarray):
    """y = x + sum of all weights' sums."""
    from onnx import TensorProto, helper, numpy_helper

    initializers = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    nodes = [helper.make_node("ReduceSum", [name], [f"{name}_sum"], keepdims=0) for name in weights]
    nodes.append(helper.make_node("Sum", ["x", *(f"{name}_sum" for name in weights)], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "sums", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_only_weights_that_half_precision_holds_are_stored_in_it():
    import onnxruntime
    from diffad.export.half_storage import store_in_half

    rng = np.random.default_rng(0)
    exact = rng.normal(size=(64, 64)).astype(np.float16).astype(np.float32)
    weights = {"exact": exact, "rounded": rng.normal(size=(64, 64)).astype(np.float32), "few": exact[:2, :2]}
    weights["large"] = np.full((64, 64), 1e5, dtype=np.float32)  # beyond float16
    model = model_of(**weights)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": np.array(1, dtype=np.float32)})[0]
    size = len(model.SerializeToString())
    assert store_in_half(model) == 1
    onnx.checker.check_model(model)
    assert onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": np.array(1, dtype=np.float32)})[0] == before
    assert size - len(model.SerializeToString()) > 64 * 64 * 2 - 500
