"""What a model repository holds for services: a handler for Inference Endpoints, and exported graphs."""

import re
import shutil
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

from ..runtime.description import FILE, REGION_FILE, DetectorDescription

HANDLER, REQUIREMENTS = "handler.py", "requirements.txt"
# Folder in the repository, by the package that runs the graphs.
GRAPH_FOLDERS = {"onnxruntime": "onnx", "openvino": "openvino"}
EXPORTED_CODE = ("detector.py", "requirements.txt")


def write_endpoint(folder: Path) -> None:
    """Writes `handler.py`, and `requirements.txt` with the versions of this installation, with which the model was made."""
    shutil.copyfile(Path(__file__).parent / "templates" / "endpoint_handler.py", folder / HANDLER)
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in pinned_requirements()), encoding="utf-8")


def pinned_requirements() -> list[str]:
    """What diffad needs on every platform and without extras, each at its installed version."""
    names = [re.match(r"[\w.-]+", one)[0] for one in requires("diffad") if ";" not in one]
    # A local label, such as that of a build for CUDA, is of no package index.
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def copy_graphs(exported: Sequence[Path], folder: Path, digest: str) -> None:
    """Copies folders that `diffad export` wrote to `onnx/` and `openvino/` of a repository.

    Args:
        digest: of the model in the repository.

    Raises:
        ExportError: if one is damaged.
        ValueError: if one is of another model, or two are for the same runtime.
    """
    for source in exported:
        description = DetectorDescription.read(source)
        if description.model != digest:
            raise ValueError(f"{source}: was exported from another model than the one that is pushed; export this one")
        place = folder / GRAPH_FOLDERS[description.runtime]
        if place.exists():
            raise ValueError(f"{source}: there is already a graph for {description.runtime}; give one of each")
        place.mkdir()
        region = (REGION_FILE,) if description.has_region else ()
        for name in dict.fromkeys([FILE, *description.files, *region, *EXPORTED_CODE]):
            shutil.copyfile(source / name, place / name)
