"""Graphs in the runtimes of exported models: what is timed without Python around it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffad import DiffADPipeline
from diffad.export.graph import trace
from diffad.runtime.engines import build_engine

Graph = Callable[[Mapping[str, np.ndarray]], object]


def load_graph(path: Path, runtime: str, threads: int, precision: str) -> Graph:
    """A graph as `diffad.runtime` runs it; inputs that it does not have are left out."""
    engine = build_engine(runtime, path, "cpu", threads, precision)
    return lambda inputs: engine({name: values for name, values in inputs.items() if name in engine.inputs})


def load_openvino(path: Path, device: str, threads: int, settings: Mapping[str, str]) -> Graph:
    """A graph in OpenVINO, on so many threads of the CPU, whatever chooses the device."""
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
    model = core.compile_model(path, device, dict(settings))
    names = {graph_input.any_name for graph_input in model.inputs}
    request = model.create_infer_request()
    return lambda inputs: request.infer({name: values for name, values in inputs.items() if name in names})


def default_openvino_precision() -> str:
    """In which OpenVINO computes on this CPU unless it is told otherwise."""
    import openvino

    names = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
    return names[openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()]


class UNetPass(torch.nn.Module):
    """One pass of a pipeline's UNet over noisy images, as the reverse process makes it: `(xt, timestep)` to its outputs."""

    def __init__(self, pipe: DiffADPipeline, category: int | None):
        super().__init__()
        self.unet = pipe.unet
        self.register_buffer("category", None if category is None else torch.tensor([category]))

    def forward(self, xt: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.unet(xt, timestep, self.category, return_dict=False)


def save_unet(unet_pass: UNetPass, inputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes a UNet pass as ONNX, for inputs of these shapes."""
    path.write_bytes(trace(unet_pass, inputs, ("output", "features"), dynamic={}).SerializeToString())
