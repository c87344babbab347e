"""Every command and snippet of the README runs, in its order, in one folder with small made-up data under the README's names.

Commands are shortened by appended options only. What makes an environment or installs packages is skipped.
"""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import urllib.request
from configparser import ConfigParser
from pathlib import Path

import gradio
import pytest
import torch
import typer
from accelerate.state import AcceleratorState
from adm_reference import trained
from diffad.cli import app
from diffad.data import evaluation_samples, training_samples
from diffad_training import demo
from diffad_training.config import TrainingConfig
from hub_server import TOKEN, hub_server
from PIL import Image
from test_hub import run as run_beside_hub
from tiny_pipeline import save_test_images, smooth_images
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = typer.main.get_command(app).commands
# Commands joined by && are run one by one.
STEPS = [
    (kind, step)
    for kind, block in BLOCKS
    if kind in ("bash", "python")
    for step in ([block] if kind == "python" else re.split(r" && |\n", block.strip()))
]

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
SMALL = [*SHORT, "--resolution", "32", "--unet", json.dumps(TINY_UNET)]
# The paper's recipe without what needs a network; its UNet is the converted one.
SMALL_PAPER = [*SHORT, "--resolution", "16", "--unet", "{feature_block: 1}", "--extractor", "lite0", "--feature_stride", "8"]
SMALL_PAPER += ["--gaussian_dims", "null"]

# Folders of a `Folder` data set: normal_dir, normal_test_dir, abnormal_dir, mask_dir.
ANOMALIB = ("good", "good_test", "bad", "masks")

PUSH_AND_LOAD = """
import json, os, sys
from diffad.cli import app
from diffad import DiffADPipeline
from diffusers import DiffusionPipeline
from typer.testing import CliRunner
arguments, loading = json.loads(sys.argv[1])
result = CliRunner().invoke(app, arguments)
assert result.exit_code == 0, result.output
for expression in loading:
    assert eval(expression).calibration.is_fitted
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Where a reader would work: beside the repository's scripts, with images of good parts and new ones."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "training").symlink_to(ROOT / "training")
    save_images(folder / "parts/good", 140, seed=0)
    save_images(folder / "new", 4, seed=1)
    save_images(folder / "held_out", 21, seed=4)
    Image.new("L", (32, 32), 255).save(folder / "roi.png")
    for i, name in enumerate(("products/screw", "products/tile", *(f"anomalib_parts/{name}" for name in ANOMALIB))):
        save_images(folder / name, 8, seed=5 + i)
    for name, image in zip(("new1", "new2", "defective"), smooth_images(3, seed=2, size=(48, 40))):
        image.save(folder / f"{name}.png")
    save_images(save_test_images(folder / "DATA", defective=2) / "train/good", 8, seed=3)
    torch.save(trained(num_classes=4).state_dict(), folder / "256x256_diffusion.pt")
    return folder


def save_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(smooth_images(count, seed)):
        image.save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def session() -> dict:
    """Names of one interpreter, in which the reader types all snippets."""
    return {}


@pytest.fixture(autouse=True)
def as_a_new_process(monkeypatch, request):
    """In the reader's folder; each training is its process's first, as on the command line."""
    monkeypatch.chdir(request.getfixturevalue("workplace"))
    # Many small operations: threads would only wait for each other.
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("kind", "step"), STEPS, ids=[step.partition("\n")[0] for _, step in STEPS])
def test_readme_runs(kind, step, monkeypatch, workplace, session):
    if kind == "python":
        exec(compile(step, "README.md", "exec"), session)
        return
    words = shlex.split(step)
    program = Path(words[0]).name
    if words[1:3] == ["-m", "venv"] or program == "pip":
        pytest.skip(f"makes an environment: {step}")
    elif words[:2] == ["diffad", "app"]:
        serve(words[1:], monkeypatch)
    elif words[:2] == ["diffad", "push"]:
        push(words[1:], workplace)
    elif program == "diffad":
        run_diffad(words[1:])
    elif words[:2] == ["accelerate", "launch"]:
        run_process([sys.executable, "-m", "accelerate.commands.launch", *words[2:], *SMALL_PAPER], workplace)
    elif words[1:3] == ["-m", "pytest"]:
        # Of all the tests a few, from where the reader would run them.
        run_process([sys.executable, *words[1:], "-q", "-p", "no:cacheprovider", "tests/test_noise.py"], ROOT)
    elif words[1:] == ["training/demo.py"]:
        run_demo(words[1:], monkeypatch)
    elif program.startswith("python"):
        run_script(words[1:], monkeypatch)
    else:
        pytest.fail(f"nothing here knows how to run: {step}")


def run_diffad(words: list[str]) -> None:
    appended = SMALL if words[0] == "train" else []
    if "--short_side" in words:
        appended = [*appended, "--short_side", "48"]
    result = CliRunner().invoke(app, [*words, *appended], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def run_process(words: list[str], folder: Path) -> None:
    run = subprocess.run(words, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stdout + run.stderr


def run_script(words: list[str], monkeypatch) -> None:
    appended = {"train.py": SMALL, "evaluate.py": ["--no-report"], "convert_adm.py": ["--num_head_channels", "16"]}
    monkeypatch.setattr(sys, "argv", [*words, *appended.get(Path(words[0]).name, [])])
    runpy.run_path(words[0], run_name="__main__")


def run_demo(words: list[str], monkeypatch) -> None:
    """On fewer solar cells, and with the processes that it starts as calls."""

    def run_as_call(command: list) -> None:
        script = next(i for i, word in enumerate(command) if str(word).endswith(".py"))
        AcceleratorState._reset_state(reset_partial_state=True)
        run_script([str(word) for word in command[script:]], monkeypatch)

    monkeypatch.setattr(demo, "_run", run_as_call)
    for name, count in {"TRAIN_GOOD": 12, "TEST_GOOD": 3, "TEST_DEFECTIVE": 3}.items():
        monkeypatch.setattr(demo, name, count)
    monkeypatch.setattr(sys, "argv", words)
    demo.main()


def serve(words: list[str], monkeypatch) -> None:
    """Until the page has been answered once."""
    pages = []

    def visit(served: gradio.Blocks) -> None:
        with urllib.request.urlopen(served.local_url) as answer:
            pages.append(answer.read())
        served.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", visit)
    run_diffad([*words, "--no-browser"])
    assert b"<html" in pages[0]


def push(words: list[str], workplace: Path) -> None:
    """To a stand-in of the Hub, and back by the README's lines for others."""
    loading = re.findall(r"`(Diff\w+\.from_pretrained\(\"me/.*?\))`", README)
    assert len(loading) == 2
    with hub_server() as hub:
        run_beside_hub(PUSH_AND_LOAD, [words, loading], hub, workplace / "home", token=TOKEN)
        assert hub.private[words[2]] == ("--private" in words)


def test_csv_example_is_a_data_set(workplace):
    (manifest,) = [block for kind, block in BLOCKS if not kind and block.startswith("image,")]
    path = workplace / "csv/parts.csv"
    path.parent.mkdir()
    path.write_text(manifest)
    for name in re.findall(r"[\w/]+\.png", manifest):
        (path.parent / name).parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), 255).save(path.parent / name)
    assert [sample.defect for sample in training_samples(path)] == ["good"]
    assert [(sample.defect, sample.mask is not None) for sample in evaluation_samples(path)] == [
        ("good", False),
        ("scratch", True),
    ]


def test_every_command_is_described():
    described = set(re.findall(r"^\| `diffad (\w+)", README, re.MULTILINE))
    assert described == set(COMMANDS)


def test_scripts_presets_and_extras_exist():
    for path in re.findall(r"(?:training|model_cards|tests)/[\w/]+\.\w+", README):
        assert (ROOT / path).is_file(), path
    for preset in re.findall(r"--config ([\w-]+)", README):
        assert (ROOT / "training/configs" / f"{preset}.yaml").is_file(), preset
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extra in re.findall(r"pip install .*?\[(\w+)\]", README):
        assert extra in setup["options.extras_require"], extra


def test_every_option_exists():
    known = {f"--{name}" for name in TrainingConfig.__dataclass_fields__} | {"--config", "--multi_gpu", "--num_processes"}
    known |= {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    for script in (ROOT / "training").glob("*.py"):
        known |= set(re.findall(r'add_argument\(\s*"(--\w+)"', script.read_text()))
    known.add("--help")
    assert {option for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", README)} <= known
