"""Files that runtimes read."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

FORMATS = {"onnx": "onnxruntime", "openvino": "openvino"}  # and the runtime of each
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


def save_graph(model: "onnx.ModelProto", folder: Path, name: str, export_format: str) -> list[str]:
    """Writes a graph and returns the names of its files, the one that is opened first.

    Raises:
        ModuleNotFoundError: naming the package where it is not installed.
    """
    if export_format == "onnx":
        import onnx

        onnx.checker.check_model(model)
        onnx.save_model(model, folder / f"{name}.onnx")
        return [f"{name}.onnx"]
    try:
        import openvino
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--format openvino needs the package openvino: pip install openvino") from None
    source = folder / f"{name}.onnx"
    source.write_bytes(model.SerializeToString())
    openvino.save_model(openvino.Core().read_model(source), folder / f"{name}.xml", compress_to_fp16=False)
    source.unlink()
    return [f"{name}.xml", f"{name}.bin"]
