"""Model repositories: exported, uploaded to a stand-in of the Hub, and loaded by people with and without diffad."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from diffad import DiffADPipeline
from diffad.hub.card import DataTerms
from diffad.hub.push import export_repo
from diffad_training.config import TrainingConfig, parse_config, save_config
from hub_server import TOKEN, hub_server
from PIL import Image
from tiny_pipeline import smooth_images, tiny_pipeline

EVALUATION_METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30")

# The Hub's client reads its settings at import, so that what talks to a Hub runs in processes of its own.
WITH_DIFFAD = """
import json, os, sys
import numpy as np
from diffad import DiffADPipeline, JointUNet2DModel, hub
from diffad.cli import app
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
code = hub.single_file_code
hub.single_file_code = lambda version: code(version) + "# newer"
report["second"] = pipe.push_to_hub("me/second", commit_message="newer")
print(json.dumps(report))
"""

# Runs in an interpreter that processes no .pth file (-S), so that an editable installation of diffad is out of reach.
WITHOUT_DIFFAD = """
import json, sys
paths, sources, images, folder = json.loads(sys.argv[1])
sys.path += paths
import importlib.util
assert importlib.util.find_spec("diffad") is None, "diffad can be imported: this test says nothing"
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
             maps=np.stack(output.anomaly_maps), repaired=np.stack(repaired))
"""


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline(smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(19, seed=4))
    return pipe


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory):
    """A trained model's folder, with what training leaves there besides the pipeline."""
    folder = tmp_path_factory.mktemp("runs") / "part"
    pipe.save_pretrained(folder)
    config = TrainingConfig(data=str(folder.parent / "gear"), output_dir=str(folder), seed=7, max_train_steps=30)
    save_config(config, folder / "training_config.json")
    (folder / "training_summary.json").write_text(json.dumps({"seconds": 600.0, "peak_memory_mib": 2048.0, "steps": 30}))
    (folder / "checkpoint-30").mkdir()
    (folder / "checkpoint-30" / "optimizer.bin").write_bytes(b"pickled")
    return folder


@pytest.fixture(scope="module")
def evaluation(pipe, tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("runs") / "part-evaluation", pipe)


def write_evaluation(folder: Path, pipe, data: str = "gear", shift: float = 0.0) -> Path:
    """What training/evaluate.py writes."""
    folder.mkdir()
    values = {name: 0.95 - 0.1 * i + shift for i, name in enumerate(EVALUATION_METRICS)}
    metrics = {
        "scores": {"ensemble": values, "kl": values, "kl@20": values},
        "images": {"good": 2, "defective": 3},
        "operating_point": {
            "requested_false_alarm_rate": 0.1,
            "held_out_normals": 19,
            "realised_false_alarm_rate": 0.5,
            "detection_rate": 2 / 3,
        },
        "recipe": json.loads(pipe.calibration.to_json_string()),
        "cost": {"images_per_second": 5.0, "peak_memory_mib": 1536.0, "unet_parameters": 2e6, "threads": 2, "device": "cpu"},
        "model": str(folder),
        "data": data,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = ["test/hole/0.png,hole,3,0.01,1", "test/hole/1.png,hole,3,0.01,0", "test/cut/0.png,cut,3,0.01,1"]
    rows += ["test/good/0.png,good,1,0.5,0", "test/good/1.png,good,2,0.2,1"]
    (folder / "scores.csv").write_text("\n".join(["image,defect,score,p_value,called_defective", *rows]) + "\n")
    Image.new("RGB", (8, 8), "red").save(folder / "sheet.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{i}.png") for i in range(3)]
    for path, image in zip(paths, smooth_images(3, seed=9, size=(40, 36))):
        image.save(path)
    return paths


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


def test_the_pushed_model_scores_the_same_without_diffad(pipe, hub, session, model, images, tmp_path, one_thread):
    export_repo(model, tmp_path / "exported")
    # The dependencies' folders; those in which diffad lies are left out.
    paths = [path for path in sys.path if path.endswith("-packages")]
    argument = [paths, ["me/gear", str(tmp_path / "exported")], images, str(tmp_path)]
    completed = run(WITHOUT_DIFFAD, argument, hub, tmp_path / "home", options=("-I", "-S"))
    assert "trust_remote_code=True" in completed.stdout
    # What diffusers says when code needs a package that is not there, or its classes are not the pipeline's.
    assert "not found in your environment" not in completed.stderr, completed.stderr
    assert "Expected types" not in completed.stderr, completed.stderr
    output = pipe(images)
    for i in range(2):
        loaded = np.load(tmp_path / f"without_diffad_{i}.npz")
        assert np.array_equal(loaded["scores"], output.image_scores)
        assert np.array_equal(loaded["p_values"], output.p_values)
        assert np.array_equal(loaded["maps"], np.stack(output.anomaly_maps))
        assert np.array_equal(loaded["repaired"], np.stack([np.asarray(image) for image in pipe.reconstruct(images).images]))


def test_a_second_push_replaces_the_code_of_the_first(hub, session):
    assert session[0]["second"] == f"{hub.endpoint}/me/second"
    first, second = hub.repos["me/second"][1:]
    modules = [json.loads(files["model_index.json"])["_class_name"][0] for files in (first, second)]
    assert modules[0] != modules[1]
    for module, files in zip(modules, (first, second)):
        code_files = [name for name in files if name.endswith(".py")]
        assert len(code_files) == 6 and all(module in name for name in code_files)


@pytest.mark.parametrize(
    "case, words", [("without token", "hf auth login"), ("wrong token", "hf auth login"), ("unreachable", "")]
)
def test_a_failed_push_is_one_line(session, case, words):
    result = session[0][case]
    assert result["code"] == 1 and result["stdout"] == ""
    assert result["stderr"].startswith("error: me/gear could not be uploaded") and words in result["stderr"]
    assert result["stderr"].count("\n") == 1


def test_an_exported_folder_loads_without_network(pipe, model, images, tmp_path, no_network):
    export_repo(model, tmp_path / "repo")
    loaded = DiffADPipeline.from_pretrained(tmp_path / "repo")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is DiffADPipeline
    assert np.array_equal(loaded(images).image_scores, pipe(images).image_scores)


def test_export_holds_what_is_needed_and_no_paths_of_the_machine(model, evaluation, tmp_path, no_network):
    repo = tmp_path / "repo"
    export_repo(model, repo, [evaluation], DataTerms(license="apache-2.0"), "me/gear")
    assert not (repo / "checkpoint-30").exists()
    settings = [
        "--config",
        str(repo / "training_config.json"),
        "--data",
        str(model.parent / "gear"),
        "--output_dir",
        str(model),
    ]
    assert parse_config(settings) == parse_config(["--config", str(model / "training_config.json")])
    for path in repo.rglob("*"):
        if path.suffix in (".json", ".md", ".py"):
            assert str(tmp_path.parent) not in path.read_text(), path
    assert (repo / "unet/diffusion_pytorch_model.safetensors").read_bytes() == (
        model / "unet/diffusion_pytorch_model.safetensors"
    ).read_bytes()


def test_an_exported_folder_can_be_exported_again(model, tmp_path):
    export_repo(model, tmp_path / "first")
    export_repo(tmp_path / "first", tmp_path / "second", repo_id="first")
    for path in (tmp_path / "first").rglob("*"):
        if path.is_file() and path.name not in ("README.md",):
            assert (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes() == path.read_bytes(), path


def test_a_loaded_pipeline_keeps_the_settings_it_was_trained_with(model, tmp_path):
    pipe = DiffADPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate(smooth_images(9, seed=31))
    export_repo(pipe, tmp_path / "repo")
    assert json.loads((tmp_path / "repo/training_config.json").read_text())["seed"] == 7
    assert json.loads((tmp_path / "repo/calibration/config.json").read_text())["num_calibration_images"] == 8


def test_evaluations_on_folders_of_one_name_keep_their_own_samples(pipe, model, tmp_path):
    colours = ("red", "green", "blue")
    evaluations = [
        write_evaluation(tmp_path / colour, pipe, data) for colour, data in zip(colours, ("my part", "my part-2", "my part"))
    ]
    for colour, folder in zip(colours, evaluations):
        Image.new("RGB", (8, 8), colour).save(folder / "sheet.png")
    export_repo(model, tmp_path / "repo", evaluations)
    places = re.findall(r"^!\[.*\]\((\S+)\)$", (tmp_path / "repo/README.md").read_text(), flags=re.MULTILINE)
    for place, folder in zip(places, evaluations, strict=True):
        assert (tmp_path / "repo" / unquote(place)).read_bytes() == (folder / "sheet.png").read_bytes()


def test_a_pipeline_that_was_never_saved_has_no_settings_of_training(pipe, model, tmp_path, monkeypatch):
    monkeypatch.chdir(model)  # with the training_config.json of another model
    export_repo(pipe, tmp_path / "repo")
    assert not (tmp_path / "repo/training_config.json").exists()
    card = (tmp_path / "repo/README.md").read_text()
    assert "The settings of the training run were not kept." in card and "Not measured." in card


def test_what_can_not_be_exported_is_refused_before_anything_is_written(pipe, model, evaluation, tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json"):
        export_repo(tmp_path, tmp_path / "repo")
    with pytest.raises(ValueError, match=r"metrics\.json: no such file"):
        export_repo(model, tmp_path / "repo", [tmp_path])
    with pytest.raises(ValueError, match="not an empty folder"):
        export_repo(model, evaluation)
    with pytest.raises(ValueError, match="not calibrated"):
        export_repo(tiny_pipeline(), tmp_path / "repo")
    broken = tmp_path / "broken"
    pipe.save_pretrained(broken)
    (broken / "gaussian/diffusion_pytorch_model.safetensors").rename(broken / "gaussian/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"gaussian: no \*\.safetensors"):
        export_repo(broken, tmp_path / "repo")
    foreign = write_evaluation(tmp_path / "foreign", pipe)
    (foreign / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="not the output of an evaluation"):
        export_repo(model, tmp_path / "repo", [foreign])
    assert not (tmp_path / "repo").exists()
