"""Model repositories: uploaded to a stand-in of the Hub, and loaded by people with and without diffad."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffad.hub.push import export_repo
from hub_models import golden_model
from hub_server import TOKEN, hub_server

# The Hub's client reads its settings at import, so that what talks to a Hub runs in processes of its own.
WITH_DIFFAD = """
import json, os, sys
import numpy as np
from diffad import DiffADPipeline, JointUNet2DModel
from diffad.cli import app
from diffad.hub import push as push_module
from huggingface_hub import constants
from typer.testing import CliRunner

model, evaluation, images, folder = json.loads(sys.argv[1])
token = os.environ.pop("HF_TOKEN")

def push(*options):
    result = CliRunner().invoke(app, ["push", model, "me/gear", *options])
    return {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr, "exception": repr(result.exception)}

report = {"without token": push()}
os.environ["HF_TOKEN"] = "hf_wrong"
report["wrong token"] = push()
os.environ["HF_TOKEN"] = token
endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
report["unreachable"] = push()
constants.ENDPOINT = endpoint
report["accepted"] = push("--evaluation", evaluation, "--license", "apache-2.0", "--private")

del os.environ["HF_TOKEN"]
pipe = DiffADPipeline.from_pretrained("me/gear")
assert type(pipe) is DiffADPipeline and type(pipe.unet) is JointUNet2DModel
assert not [name for name in sys.modules if "diffad_code" in name], "code of the repository was run"
pipe.set_progress_bar_config(disable=True)
np.save(f"{folder}/with_diffad.npy", pipe(images).image_scores)

os.environ["HF_TOKEN"] = token
pipe.push_to_hub("me/second")
code = push_module.single_file_code
push_module.single_file_code = lambda version: code(version) + "# newer"
report["second"] = pipe.push_to_hub("me/second", commit_message="newer")
print(json.dumps(report))
"""

# Runs in an interpreter that processes no .pth file (-S), so that an editable installation of diffad is out of reach.
WITHOUT_DIFFAD = """
import json, sys
paths, sources, images, folder = json.loads(sys.argv[1])
sys.path += paths
import importlib.util
def has_diffad():
    return importlib.util.find_spec("diffad") is not None or any(name.partition(".")[0] == "diffad" for name in sys.modules)
assert not has_diffad(), "diffad can be imported: this test says nothing"
import numpy as np
from diffusers import DiffusionPipeline
try:
    DiffusionPipeline.from_pretrained(sources[0])
except ValueError as error:
    print(error)
for i, source in enumerate(sources):
    pipe = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(images)
    repaired = [np.asarray(image) for image in pipe.reconstruct(images).images]
    np.savez(f"{folder}/without_diffad_{i}.npz", scores=output.image_scores, p_values=output.p_values,
             is_defective=output.is_defective, maps=np.stack(output.anomaly_maps), masks=np.stack(output.masks),
             categories=output.categories or [], repaired=np.stack(repaired))
    try:
        pipe.push_to_hub("me/third")
    except ModuleNotFoundError as error:
        assert error.name == "diffad"
    else:
        raise AssertionError("uploading needs the package")
assert not has_diffad()
"""


@pytest.fixture(scope="module")
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def session(hub, model, evaluation, images, tmp_path_factory):
    """Report of a process that pushes to the Hub and loads from it, and the folder of its results."""
    folder = tmp_path_factory.mktemp("session")
    report = run(WITH_DIFFAD, [str(model), str(evaluation), images, str(folder)], hub, folder / "home", token=TOKEN)
    return json.loads(report.stdout.splitlines()[-1]), folder


def run(script: str, argument: list, hub, home: Path, token: str | None = None, options: tuple[str, ...] = ()):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, *options, "-c", script, json.dumps(argument)]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed


@pytest.fixture
def one_thread():
    """As in the other processes: sums of floats depend on how they are split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_push_uploads_a_complete_repository_in_one_commit(hub, session):
    report, _ = session
    assert report["accepted"]["code"] == 0, report["accepted"]
    assert report["accepted"]["stdout"].strip() == f"uploaded {hub.endpoint}/me/gear"
    assert len(hub.repos["me/gear"]) == 2 and hub.private["me/gear"]  # the first commit is the Hub's own
    files = set(hub.files("me/gear"))
    assert {"README.md", "model_index.json", "training_config.json", "samples/gear.png", "unet/config.json"} < files
    assert not [name for name in files if name.endswith((".bin", ".pkl"))]


def test_the_pushed_model_scores_the_same_with_diffad(pipe, session, images, one_thread):
    assert np.array_equal(np.load(session[1] / "with_diffad.npy"), pipe(images).image_scores)


# Those of older versions too, of several categories and of images in tiles.
@pytest.mark.parametrize("former", [["categories"], pytest.param(["one", "tiled"], marks=pytest.mark.long)], ids=str)
def test_the_pushed_model_scores_the_same_without_diffad(former, pipe, hub, session, model, images, tmp_path, one_thread):
    pipes = [pipe, pipe]
    export_repo(model, tmp_path / "exported")
    for name in former:
        pipes.append(golden_model(name, tmp_path / f"{name}-saved"))
        export_repo(tmp_path / f"{name}-saved", tmp_path / name)
    # The dependencies' folders; those in which diffad lies are left out.
    paths = [path for path in sys.path if path.endswith("-packages")]
    sources = ["me/gear", *(str(tmp_path / name) for name in ("exported", *former))]
    argument = [paths, sources, images, str(tmp_path)]
    completed = run(WITHOUT_DIFFAD, argument, hub, tmp_path / "home", options=("-I", "-S"))
    assert "trust_remote_code=True" in completed.stdout
    # What diffusers says when code needs a package that is not there, or its classes are not the pipeline's.
    assert "not found in your environment" not in completed.stderr, completed.stderr
    assert "Expected types" not in completed.stderr, completed.stderr
    for i, with_diffad in enumerate(pipes):
        loaded, output = np.load(tmp_path / f"without_diffad_{i}.npz"), with_diffad(images)
        assert np.array_equal(loaded["scores"], output.image_scores)
        assert np.array_equal(loaded["p_values"], output.p_values)
        assert np.array_equal(loaded["is_defective"], output.is_defective)
        assert np.array_equal(loaded["maps"], np.stack(output.anomaly_maps))
        assert np.array_equal(loaded["masks"], np.stack(output.masks))
        assert loaded["categories"].tolist() == (output.categories or [])
        repaired = np.stack([np.asarray(image) for image in with_diffad.reconstruct(images).images])
        assert np.array_equal(loaded["repaired"], repaired)


def test_a_second_push_replaces_the_code_of_the_first(hub, session):
    assert session[0]["second"] == f"{hub.endpoint}/me/second"
    first, second = hub.repos["me/second"][1:]
    modules = [json.loads(files["model_index.json"])["_class_name"][0] for files in (first, second)]
    assert modules[0] != modules[1]
    for module, files in zip(modules, (first, second)):
        code_files = [name for name in files if name.endswith(".py") and name != "handler.py"]
        assert len(code_files) == 6 and all(module in name for name in code_files)


@pytest.mark.parametrize(
    "case, words", [("without token", "hf auth login"), ("wrong token", "hf auth login"), ("unreachable", "")]
)
def test_a_failed_push_is_one_line(session, case, words):
    result = session[0][case]
    assert result["code"] == 1 and result["stdout"] == ""
    assert result["stderr"].startswith("error: me/gear could not be uploaded") and words in result["stderr"]
    assert result["stderr"].count("\n") == 1
