"""Every command and snippet of the documents runs, in their order, in one folder with small made-up data under their names.

Commands are shortened by appended options only, but for the model that is exported. Not run, and shown as skipped: what
installs something, and the benchmarks and launches of several processes, of which the options are parsed. Later steps use
what earlier ones have made: run the whole file.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import gradio
import numpy as np
import pytest
import torch
import typer
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from adm_reference import trained
from diffad import DiffADPipeline  # noqa: F401 - in the README's lines
from diffad.cli import app
from diffad_training import demo
from diffad_training.config import TrainingConfig, parse_config
from diffusers import DiffusionPipeline  # noqa: F401
from documents import DOCUMENTS, GUIDE, README, ROOT, Step
from elpv_dataset import utils as elpv
from feedback_records import write_feedback
from hub_server import hub_server, upload_to
from PIL import Image
from tiny_pipeline import save_test_images, smooth_images, tiny_pipeline
from tiny_training import choose_maps_quickly
from typer.testing import CliRunner

COMMANDS = typer.main.get_command(app).commands
STEPS = [step for document in DOCUMENTS for step in document.steps]

TINY_UNET = {
    "patch_size": 2,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "add_attention": False,
}
SHORT = ["--max_train_steps", "2", "--mixed_precision", "no", "--report_to", "none", "--levels", "[2]"]
SHORT += ["--feature_denoiser_steps", "2", "--feature_denoiser", "{width: 16, num_blocks: 1}"]
SHORT += ["--held_out_fraction", "0.5"]  # as many as 5 % of false alarms need, of few images
SMALL = [*SHORT, "--resolution", "32", "--unet", json.dumps(TINY_UNET)]
# The paper's recipe without what needs a network; its UNet is the converted one.
SMALL_PAPER = [*SHORT, "--resolution", "16", "--unet", "{feature_block: 1}", "--extractor", "lite0", "--feature_stride", "8"]
SMALL_PAPER += ["--gaussian_dims", "null"]
INSTALLERS = ("pip", "uv", "venv")
# Folders of good images, with the number of images in each.
FOLDERS = {"parts/good": 46, "large/good": 4, "new": 4, "held_out": 21, "lots/monday": 4, "lots/tuesday": 4}
FOLDERS |= {"fresh/good": 12, "fresh/later": 12, "fresh/more": 24, "fresh/rejected": 4}
FOLDERS |= {"known/defects": 4, "known/masks": 4}
FOLDERS |= {f"products/{name}": 8 for name in ("screw", "tile")}
FOLDERS |= {f"anomalib_parts/{name}": 4 for name in ("good", "good_test", "bad", "masks")}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Where a reader would work: beside the repository's scripts, with images of good parts and new ones."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "training").symlink_to(ROOT / "training")
    for seed, (name, count) in enumerate(FOLDERS.items()):
        save_images(folder / name, count, seed)
    Image.new("L", (32, 32), 255).save(folder / "roi.png")
    write_feedback(folder / "feedback.jsonl", wrongly_rejected=sorted((folder / "fresh/rejected").iterdir()))
    for path in (folder / "known/masks").iterdir():
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[8:16, 8:16] = 255
        Image.fromarray(mask).save(path)
    for name, image in zip(("new1", "new2", "defective"), smooth_images(3, seed=2, size=(48, 40))):
        image.save(folder / f"{name}.png")
    save_images(save_test_images(folder / "DATA", defective=2) / "train/good", 8, seed=30)
    torch.save(trained(num_classes=4).state_dict(), folder / "256x256_diffusion.pt")
    return folder


def save_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(smooth_images(count, seed)):
        image.save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def sessions() -> dict[str, dict]:
    """Names of one interpreter for each document, in which the reader types its snippets."""
    return {}


class Servers:
    """`diffad serve`, on a free port in place of its own, until the next one is started."""

    def __init__(self):
        self.process, self.port = None, 0

    def start(self, words: list[str]) -> None:
        self.stop()
        with socket.create_server(("127.0.0.1", 0)) as other:
            self.port = other.getsockname()[1]
        command = [sys.executable, "-m", "diffad.cli", *words, "--port", str(self.port), "--threads", "1"]
        self.process = subprocess.Popen(command)
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready"):
                return
            assert self.process.poll() is None, words
            time.sleep(0.1)
        pytest.fail(f"not ready after a minute: {words}")

    def ask(self, words: list[str]) -> None:
        """By curl; the answer has to be a good one."""
        if shutil.which(words[0]) is None:
            pytest.skip("curl is not installed")
        words = [word.replace("localhost:8000", f"127.0.0.1:{self.port}") for word in words]
        answer = subprocess.run([*words, "--silent", "--fail-with-body"], capture_output=True, text=True)
        assert answer.returncode == 0 and json.loads(answer.stdout), answer

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    found = Servers()
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def as_a_new_process(monkeypatch, workplace):
    """In the reader's folder; each training is its process's first, as on the command line."""
    monkeypatch.chdir(workplace)
    # Many small operations: threads would only wait for each other.
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    choose_maps_quickly(monkeypatch.setattr)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_runs(step: Step, monkeypatch, workplace, sessions, servers):
    if step.kind == "python":
        exec(compile(step.text, step.document, "exec"), sessions.setdefault(step.document, {}))
        return
    words = shlex.split(step.text)
    program = Path(words[0]).name
    if program in INSTALLERS or words[1:3] == ["-m", "venv"]:
        pytest.skip("installs something")
    elif words[1:] == ["-m", "pytest"]:
        pytest.skip("runs this very test")
    elif program == "cp":
        shutil.copy(*words[1:])
    elif words[:2] == ["diffad", "app"]:
        serve(words[1:], monkeypatch)
    elif words[:2] == ["diffad", "serve"]:
        servers.start(words[1:])
    elif program == "curl":
        servers.ask(words)
    elif words[:2] == ["diffad", "push"] and "--dry-run" not in words:
        push(words[1:], monkeypatch, workplace)
    elif program == "ray" or "--engine" in words:
        if program == "diffad":
            COMMANDS[words[1]].make_context(words[1], words[2:])
        pytest.skip("starts several processes: its options are right")
    elif program == "diffad":
        run_diffad(words[1:])
    elif words[:2] == ["accelerate", "launch"]:
        launch(words[2:], monkeypatch)
    elif words[1:] == ["training/demo.py"]:
        run_demo(words[1:], monkeypatch)
    elif words[1].startswith("training/benchmarks/"):
        check_options(words[1:])
        pytest.skip("takes hours: its options are right")
    elif program.startswith("python"):
        small = ["--num_head_channels", "16"] if words[1] == "training/convert_adm.py" else []
        run_script([*words[1:], *small], monkeypatch)
    else:
        pytest.fail(f"nothing here knows how to run: {step.text}")


def run_diffad(words: list[str]) -> None:
    appended = {"train": SMALL, "audit": ["--resolution", "32", "--levels", "[2]"]}.get(words[0], [])
    if words[0] == "export":
        words = [words[0], save_simple_model(), *words[2:]]
    if "--short_side" in words:
        appended = [*appended, "--short_side", "48"]
    result = CliRunner().invoke(app, [*words, *appended], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def save_simple_model() -> str:
    """To be exported: its graph is traced in seconds, that of a trained model in half a minute, which tests of export take."""
    pipe = tiny_pipeline(weights={"mahalanobis": 1.0}, smoothing_sigma=1.0)
    pipe.calibrate(smooth_images(21, seed=4))
    pipe.save_pretrained("runs/simple")
    return "runs/simple"


def run_script(words: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code


def launch(words: list[str], monkeypatch) -> None:
    """What accelerate would start, in this process."""
    options = launch_command_parser().parse_args(words)
    training = options.training_script_args
    if options.multi_gpu:
        parse_config(training)
        pytest.skip("starts several processes: its options are right")
    run_script([options.training_script, *training, *(SMALL_PAPER if "paper" in training else SMALL)], monkeypatch)


def run_demo(words: list[str], monkeypatch) -> None:
    """On fewer solar cells, and with the processes that it starts as calls."""

    def run_as_call(command: list) -> None:
        words = [str(word) for word in command]
        AcceleratorState._reset_state(reset_partial_state=True)
        if "accelerate.commands.launch" in words:
            launch(words[words.index("accelerate.commands.launch") + 1 :], monkeypatch)
        else:
            run_diffad(words[words.index("evaluate") :])

    monkeypatch.setattr(demo, "_run", run_as_call)
    monkeypatch.setattr(elpv, "load_dataset", partial(elpv.load_dataset, some_solar_cells(Path("elpv"))))
    for name, count in {"TRAIN_GOOD": 12, "TEST_GOOD": 3, "TEST_DEFECTIVE": 3}.items():
        monkeypatch.setattr(demo, name, count)
    monkeypatch.setattr(sys, "argv", words)
    demo.main()


def some_solar_cells(folder: Path) -> Path:
    """The list of every eighth cell of the published data set."""
    published = Path(elpv.__file__).parent / "data"
    folder.mkdir()
    (folder / "images").symlink_to(published / "images")
    lines = (published / "labels.csv").read_text().splitlines(keepends=True)
    (folder / "labels.csv").write_text("".join(lines[::8]))
    return folder / "labels.csv"


def check_options(words: list[str]) -> None:
    """Of a benchmark, which passes those that it does not know on to training."""
    source = (ROOT / words[0]).read_text()
    known = set(re.findall(r'add_argument\(\s*"(--\w+)"', source))
    if "parse_known_args" in source:
        known |= {f"--{name}" for name in TrainingConfig.__dataclass_fields__}
    assert {word for word in words if word.startswith("--")} <= known


def serve(words: list[str], monkeypatch) -> None:
    """Until the page has been answered once."""
    pages = []

    def visit(served: gradio.Blocks) -> None:
        with urllib.request.urlopen(served.local_url) as answer:
            pages.append(answer.read())
        served.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", visit)
    # Not by the runner, which exchanges the output streams: threads of the server may put them back when it is over.
    typer.main.get_command(app).main([*words, "--no-browser"], standalone_mode=False)
    assert b"<html" in pages[0]


def push(words: list[str], monkeypatch, workplace: Path) -> None:
    """To a stand-in of the Hub; what is there then is loaded by the README's lines for others.

    Here from a folder of the repository's name: test_push.py loads from the stand-in.
    """
    loading = re.findall(r"`(Diff\w+\.from_pretrained\(\"me/.*?\))`", README.text)
    assert len(loading) == 2
    with hub_server() as hub:
        upload_to(hub, monkeypatch)
        run_diffad(words)
        assert hub.private[words[2]] == ("--private" in words)
        for name, content in hub.files(words[2]).items():
            path = workplace / words[2] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for expression in loading:
        assert eval(expression).calibration.is_fitted


@pytest.mark.parametrize("command", [command for document in DOCUMENTS for command in document.inline_commands])
def test_a_command_in_a_sentence_has_its_options(command):
    _, name, *arguments = shlex.split(command)
    known = {option.replace("_", "-") for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {word.replace("_", "-") for word in arguments if word.startswith("--")} <= known


def test_the_manifest_of_the_guide_is_a_data_set(workplace):
    from diffad.data import evaluation_samples, training_samples

    (manifest,) = [block for kind, block in GUIDE.blocks if not kind and block.startswith("image,")]
    path = workplace / "csv/parts.csv"
    path.parent.mkdir()
    path.write_text(manifest)
    for name in re.findall(r"[\w/]+\.png", manifest):
        (path.parent / name).parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), 255).save(path.parent / name)
    training = training_samples(path)
    assert [(sample.defect, sample.group) for sample in training] == [("good", "part 1")] * 2
    assert [(sample.defect, sample.mask is not None) for sample in evaluation_samples(path)] == [
        ("good", False),
        ("scratch", True),
    ]
