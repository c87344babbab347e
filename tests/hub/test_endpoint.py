"""A pushed repository as an Inference Endpoint and as a download of exported graphs."""

import ast
import base64
import importlib.util
import io
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from diffad.hub.push import export_repo
from diffad.hub.services import copy_graphs
from diffad.imaging.regions import bounding_boxes
from diffad.runtime.description import CalibrationScores, DetectorDescription, ExportError
from diffad.scoring.config import ScoreConfig
from diffad.system.file_digest import file_digest
from PIL import Image
from tiny_pipeline import smooth_images


@pytest.fixture(scope="module")
def repository(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "part"
    export_repo(model, folder)
    return folder


@pytest.fixture(scope="module")
def handler(repository):
    """As the service makes it: `handler.py` is loaded as a file, and given the folder of the repository."""
    spec = importlib.util.spec_from_file_location("handler", repository / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(repository))


def part(seed: int, defective: bool = False) -> Image.Image:
    pixels = np.array(smooth_images(1, seed=seed, size=(40, 36))[0])
    if defective:
        pixels[10:20, 12:22] = (255, 0, 255)
        pixels[28:31, 2:5] = (0, 255, 0)
    return Image.fromarray(pixels)


def as_base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_an_image_in_base64_gets_the_models_verdict(handler, pipe):
    image = part(50, defective=True)
    (row,) = handler({"inputs": as_base64(image)})
    output = pipe(image)
    assert row["score"] == pytest.approx(float(output.image_scores[0]), abs=1e-5)
    assert row["label"] == "defective" and row["category"] is None
    assert row["p_value"] == pytest.approx(float(output.p_values[0]))
    assert row["boxes"] == bounding_boxes(output.masks[0]) != []
    assert json.loads(json.dumps(row)) == row


def test_images_as_the_service_decodes_them_and_parameters(handler, pipe):
    images = [part(50, defective=True), part(51)]
    rows = handler({"inputs": images, "parameters": {"mask": True, "repair": True, "false_alarm_rate": 0.2}})
    output, repair = pipe(images, false_alarm_rate=0.2), pipe.reconstruct(images, false_alarm_rate=0.2)
    for i, row in enumerate(rows):
        assert row["image_threshold"] == pytest.approx(float(output.image_thresholds[i]), abs=1e-5)
        assert row["confident"] == repair.confident[i]
        mask = Image.open(io.BytesIO(base64.b64decode(row["mask_png"])))
        np.testing.assert_array_equal(np.asarray(mask) > 0, output.masks[i])
        repaired = Image.open(io.BytesIO(base64.b64decode(row["repaired_png"])))
        assert np.abs(np.asarray(repaired, int) - np.asarray(repair.images[i], int)).max() <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "image 1 is no image file in base64"),
        ({"inputs": ["no base64!"]}, "image 1 is no image file in base64"),
        ({"inputs": base64.b64encode(b"no image").decode()}, "image 1 is no image file in base64"),
        ({"inputs": [], "parameters": {"threshold": 3}}, "unknown parameters threshold; there are false_alarm_rate"),
    ],
)
def test_what_can_not_be_used_is_named(handler, data, message):
    with pytest.raises(ValueError, match=message):
        handler(data)


def test_the_handler_imports_no_diffad_and_the_requirements_pin_what_it_needs(repository):
    imported = set()
    for node in ast.walk(ast.parse((repository / "handler.py").read_text())):
        imported |= {name.name for name in node.names} if isinstance(node, ast.Import) else set()
        imported |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    assert not any(name.startswith("diffad") for name in imported)
    pins = dict(line.split("==") for line in (repository / "requirements.txt").read_text().splitlines())
    assert {"torch", "diffusers", "numpy", "scipy", "pillow", "timm"} <= set(pins)
    assert all(version(name).partition("+")[0] == pinned for name, pinned in pins.items())


def write_exported(folder: Path, runtime: str, digest: str) -> Path:
    """A folder as `diffad export` writes it, with a graph that nothing runs."""
    folder.mkdir()
    (folder / "model.graph").write_bytes(b"a graph")
    scores = (CalibrationScores((0.0, 1.0), (0.0, 1.0)),)
    files = {"model.graph": file_digest(folder / "model.graph")}
    description = DetectorDescription(
        runtime, "fp32", "model.graph", (32, 32), None, ScoreConfig(), {"fp32": scores}, digest, files=files
    )
    description.write(folder)
    for name in ("detector.py", "requirements.txt", "notes.txt"):
        (folder / name).write_text(name)
    return folder


def test_graphs_of_the_model_are_in_the_repository(model, pipe, tmp_path):
    folders = [write_exported(tmp_path / runtime, runtime, pipe.digest) for runtime in ("onnxruntime", "openvino")]
    export_repo(model, tmp_path / "repo", exported=folders)
    for place in ("onnx", "openvino"):
        kept = {path.name for path in (tmp_path / "repo" / place).iterdir()}
        assert kept == {"detector.json", "model.graph", "detector.py", "requirements.txt"}
        assert DetectorDescription.read(tmp_path / "repo" / place).model == pipe.digest


def test_graphs_of_another_model_or_damaged_ones_are_refused(tmp_path, pipe):
    other = write_exported(tmp_path / "other", "openvino", "0" * 64)
    with pytest.raises(ValueError, match="other: was exported from another model"):
        copy_graphs([other], tmp_path, pipe.digest)
    own = write_exported(tmp_path / "own", "openvino", pipe.digest)
    with pytest.raises(ValueError, match="own: there is already a graph for openvino"):
        copy_graphs([own, own], tmp_path, pipe.digest)
    (own / "model.graph").write_bytes(b"another graph")
    with pytest.raises(ExportError, match="not as it was exported"):
        copy_graphs([own], tmp_path, pipe.digest)
