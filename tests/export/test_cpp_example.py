"""The example in C++: a consumer of the graph that has nothing to do with Python."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from diffad.runtime.engines import build_engine
from PIL import Image

SOURCE = Path(__file__).parents[2] / "pipelines/examples/detect.cpp"


def test_the_example_is_short():
    assert len(SOURCE.read_text().splitlines()) <= 80


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_it_prints_the_score_and_verdict_of_the_graph(openvino, tmp_path):
    import openvino as package

    root = Path(package.__file__).parent
    library = next((root / "libs").glob("libopenvino.so.*"))
    program = tmp_path / "detect"
    build = ["g++", "-std=c++17", SOURCE, "-I", root / "include", library, f"-Wl,-rpath,{root / 'libs'}", "-o", program]
    subprocess.run(build, check=True, timeout=300)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.ppm")
    detail = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    small = detail.reshape(1, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    engine = build_engine("openvino", openvino.folder / "model.xml", "cpu", None, "fp32")
    expected = float(engine({"image": small, "detail": detail})["image_score"][0])
    for threshold, verdict in ((expected - 0.1, "defective"), (expected + 0.1, "good")):
        command = [program, openvino.folder / "model.xml", str(threshold), tmp_path / "image.ppm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        path, score, label = done.stdout.split()
        assert done.returncode == 0 and label == verdict
        np.testing.assert_allclose(float(score), expected, rtol=1e-3)
