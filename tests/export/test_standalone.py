"""`detector.py` of an exported folder, alone: no torch, no diffusers, no diffad."""

import json
import subprocess
import sys
import venv

import numpy as np
import pytest
from diffad.runtime.rows import rows_of
from three_products import mixed_images

# Refuses what an exported folder does not list in its requirements.
ALONE = """
import sys, runpy
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "diffusers", "diffad", "transformers", "onnx", "filelock"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refused())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(mixed_images()):
        image.resize((40, 50)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def assert_rows_are_the_pipelines(text: str, exported, files) -> None:
    rows = [json.loads(line) for line in text.splitlines()]
    expected = rows_of([str(path) for path in files], exported.pipe(files, false_alarm_rate=0.1))
    for row, one in zip(rows, expected, strict=True):
        for name in ("score", "image_threshold", "pixel_threshold", "p_value"):
            np.testing.assert_allclose(row.pop(name), one.pop(name), rtol=1e-3, atol=1e-3)
        assert abs(row.pop("defect_pixels") - one.pop("defect_pixels")) <= 2
        for name in ("defect_share", "boxes", "defects"):
            row.pop(name), one.pop(name)
        assert row == one


def test_the_file_runs_where_nothing_else_is_installed(of_categories, files):
    command = [sys.executable, "-I", "-c", ALONE, of_categories.folder / "detector.py", *files, "--false_alarm_rate", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_rows_are_the_pipelines(done.stdout, of_categories, files)


def test_an_unreadable_image_gets_a_line_and_exit_code_1(of_categories, files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    command = [sys.executable, of_categories.folder / "detector.py", broken, files[0], "--false_alarm_rate", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and "broken.png" in rows[0]["error"] and rows[1]["category"] == "nut"
    refused = subprocess.run([*command, "--precision", "bf16"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and len(refused.stderr.splitlines()) == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["of_categories", "openvino"])
def test_requirements_are_all_that_it_needs(kind, files, tmp_path, request):
    exported = request.getfixturevalue(kind)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", exported.folder / "requirements.txt"], check=True, timeout=600)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    command = [python, "-I", exported.folder / "detector.py", *files, "--false_alarm_rate", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_rows_are_the_pipelines(done.stdout, exported, files)
