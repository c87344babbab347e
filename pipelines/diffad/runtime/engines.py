"""The runtimes that compute an exported graph; each is imported when it is needed."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ..system.telemetry import refuse_telemetry


class Engine(Protocol):
    """Computes one graph, whose inputs have these names; threads may share it."""

    inputs: frozenset[str]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of the graph by name."""


class OnnxRuntimeEngine:
    """ONNX Runtime.

    Args:
        graph: `.onnx` file.
        device: `cpu`, or `cuda` where onnxruntime-gpu is installed.
        threads: of one inference; None is all cores.
        precision: `fp32` or `int8`, as the graph's file has it.

    Raises:
        ValueError: if the device can't be used.
    """

    def __init__(self, graph: Path, device: str, threads: int | None, precision: str):
        import onnxruntime

        available = onnxruntime.get_available_providers()
        providers = {provider.removesuffix("ExecutionProvider").lower(): provider for provider in available}
        if device.lower() not in providers:
            raise ValueError(f"device {device!r} can't be used here; there are {', '.join(providers)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(graph, options, providers=[providers[device.lower()]])
        self.inputs = frozenset(graph_input.name for graph_input in self.session.get_inputs())
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(None, dict(inputs)), strict=True))


class OpenVinoEngine:
    """OpenVINO.

    Args:
        graph: `.xml` file.
        device: as OpenVINO names it, such as `cpu`, `gpu` or `npu`.
        threads: of one inference; None is all cores.
        precision: `bf16` computes in half precision; `fp32` and `int8` compute all that the file holds as float in float32,
            so that scores do not depend on what a CPU prefers.

    Raises:
        ValueError: if the device can't be used.
    """

    HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}

    def __init__(self, graph: Path, device: str, threads: int | None, precision: str):
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.HINTS[precision]}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        if device.upper() not in core.available_devices:
            raise ValueError(f"device {device!r} can't be used here; there are {', '.join(core.available_devices)}")
        self.model = core.compile_model(graph, device.upper(), settings)
        self.inputs = frozenset(graph_input.any_name for graph_input in self.model.inputs)
        self.of_thread = threading.local()  # a request serves one caller at a time

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not hasattr(self.of_thread, "request"):
            self.of_thread.request = self.model.create_infer_request()
        outputs = self.of_thread.request.infer(dict(inputs))
        return {output.any_name: np.array(values) for output, values in outputs.items()}


ENGINES = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}


def build_engine(runtime: str, graph: Path, device: str, threads: int | None, precision: str) -> Engine:
    """Loads a graph into its runtime.

    Raises:
        ModuleNotFoundError: naming the package where the runtime is not installed.
        ValueError: if device or number of threads can't be used.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    refuse_telemetry()
    try:
        return ENGINES[runtime](graph, device, threads, precision)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{graph}: needs the package {runtime}: pip install {runtime}", name=error.name) from None
