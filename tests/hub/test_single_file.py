"""The package in one file: what is written, and what can't be."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import diffad
import numpy as np
import pytest
from diffad.hub.module_tree import modules_needed
from diffad.hub.single_file import code_module_name, component_code, single_file_code
from diffad.scoring import conformal
from diffusers.utils import dynamic_modules_utils

# What `pip install` of the packages that a card names brings, and Python has.
INSTALLED_WITH_THE_CARD = {*sys.stdlib_module_names, "PIL", "diffusers", "filelock", "numpy", "safetensors", "scipy"}
INSTALLED_WITH_THE_CARD |= {"torch", "torchvision"}
# Every form of import that a package of subpackages has: up, down, sideways, renamed, of modules, of several names.
TREE = {
    "entry.py": "import math\n\n"
    "from . import leaf\n"
    "from .rooms import walls as all_walls\n"
    "from .rooms.inner import depth\n"
    "from .rooms.inner.depth import (\n    DEEP,\n    doubled as twice,\n)\n"
    "from diffad.leaf import LEAF as L\n\n\n"
    "def answer():\n    return leaf.LEAF, all_walls.height(), depth.DEEP, DEEP, twice(DEEP), L, math.pi\n",
    "leaf.py": '"""A leaf."""\n\nLEAF = 1\n',
    "rooms/__init__.py": '"""Rooms."""\n',
    "rooms/walls.py": "import math\n\nfrom . import beams\nfrom .beams import BEAM\nfrom .inner.depth import DEEP\n\n\n"
    "def height(factor=beams.BEAM):\n    return factor * BEAM + DEEP + math.floor(0.5)\n",
    "rooms/beams.py": "from ..leaf import LEAF\n\nBEAM = LEAF + 10\n",
    "rooms/inner/__init__.py": "",
    "rooms/inner/depth.py": "from ... import leaf\nfrom ...leaf import LEAF\nfrom ..beams import BEAM as THICKNESS\n\n"
    "DEEP = leaf.LEAF + LEAF + THICKNESS\n\n\ndef doubled(x):\n    return 2 * x\n",
    "unused.py": "raise RuntimeError\n",
}


def write(files: dict[str, str]) -> str:
    return single_file_code("1.2", entry="entry", read=files.get)


def run(code: str, tmp_path: Path, name: str = "single_file") -> ModuleType:
    """Imports the code as diffusers does: from a file, as a module of its own."""
    path = tmp_path / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def answer_of_package(files: dict[str, str], tmp_path: Path, monkeypatch):
    """What the same files answer as a package."""
    for path, source in files.items():
        file = tmp_path / "package/tree" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source.replace("from diffad.", "from tree."))
    (tmp_path / "package/tree/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "package")
    try:
        return importlib.import_module("tree.entry").answer()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tree"]:
            del sys.modules[name]


def test_modules_of_subpackages_come_before_what_imports_them_and_mean_the_same(tmp_path, monkeypatch):
    code = write(TREE)
    order = [
        code.index(f"# diffad/{path}\n") for path in ("leaf.py", "rooms/beams.py", "rooms/inner/depth.py", "rooms/walls.py")
    ]
    assert order == sorted(order) and order[-1] < code.index("# diffad/entry.py\n")
    assert code.count("def height") == 1 and "from ." not in code and "from diffad" not in code and "unused" not in code
    assert run(code, tmp_path).answer() == answer_of_package(TREE, tmp_path, monkeypatch)


def test_a_module_means_the_same_however_it_is_imported(tmp_path):
    entry = "from . import shapes\nfrom .constants import (\n    PI,\n    SIDES as N,\n)\n\n\n"
    entry += "def answer():\n    return shapes.area(PI), N\n"
    shapes = "from .constants import PI\n\n\ndef area(r):\n    return PI * r\n"
    code = write({"entry.py": entry, "shapes.py": shapes, "constants.py": "PI, SIDES = 3, 4\n"})
    assert code.index("PI, SIDES = 3, 4") < code.index("def area") < code.index("def answer")
    assert run(code, tmp_path).answer() == (9, 4)


def test_imports_that_share_a_line_or_a_block_leave_the_rest_of_it(tmp_path):
    entry = "a = 'ä'; from .leaf import LEAF as x; b = 2  # of all\nif a:\n    from .leaf import LEAF\n"
    entry += "class Part:\n    from .leaf import LEAF\n\n\n"
    module = run(write({"entry.py": entry, "leaf.py": TREE["leaf.py"]}), tmp_path)
    assert (module.a, module.x, module.b, module.Part.LEAF) == ("ä", 1, 2, 1)


def test_imports_for_type_checkers_are_neither_followed_nor_executed(tmp_path):
    entry = (
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from .missing import Nothing, x\n    from . import b\n\n"
    )
    entry += "def answer(x: 'Nothing' = 3):\n    return x\n"
    assert run(write({"entry.py": entry}), tmp_path).answer() == 3


@pytest.mark.parametrize(
    "statement, expected",
    [
        ("from .evaluation.metrics import detection_metrics as found", lambda: diffad.detection_metrics),
        ("from .evaluation import metrics as found", lambda: sys.modules["diffad.evaluation.metrics"]),
        ("from diffad.evaluation.metrics import detection_metrics as found", lambda: diffad.detection_metrics),
        ("from .data import find_layout as found", lambda: diffad.data.find_layout),
        ("from . import __version__ as found", lambda: diffad.__version__),
    ],
)
def test_imports_within_functions_keep_to_the_installed_package(tmp_path, statement, expected):
    files = {"entry.py": f"def get():\n    {statement}\n\n    return found\n", "evaluation/metrics.py": ""}
    code = write(files)
    assert "import " not in code.partition("def get")[2]
    assert run(code, tmp_path).get() is expected()


@pytest.mark.parametrize(
    "module, first, second",
    [
        ("def area():\n    pass\n", "rooms/other.py", "entry.py"),
        ("area = 1\n", "rooms/other.py", "entry.py"),
        ("import os as area\n", "rooms/other.py", "entry.py"),
        ("try:\n    from os import path as area\nexcept ImportError:\n    area = 1\n", "rooms/other.py", "entry.py"),
        ("from .. import leaf as area\n", "rooms/other.py", "entry.py"),
        ("from ..third import area\n", "third.py", "entry.py"),
        ("from .. import third as area\n", "third.py", "rooms/other.py"),
    ],
)
def test_one_name_for_two_things_is_refused(module, first, second):
    files = {"entry.py": "from .rooms import other\n\n\ndef area():\n    pass\n", "rooms/other.py": module}
    files |= {"third.py": "area = 2\n", "leaf.py": "LEAF = 1\n"}
    with pytest.raises(ValueError, match=f"area of {second} already means something else in {first}: rename one"):
        write(files)


def test_a_name_is_one_thing_through_whatever_modules_it_comes(tmp_path):
    entry = "import torch.nn as nn\nfrom . import other\nfrom .other import LEAF\n\n\n"
    entry += "def answer():\n    return LEAF, other.total, nn.__name__, [x for x in (1,)]\n"
    other = "import os.path\nimport os\nfrom torch import nn\n\nfrom .leaf import LEAF\n\ntotal = {x: 1 for x in (1, 2)}\n"
    files = {"entry.py": entry, "other.py": other, "leaf.py": "LEAF = 1\n\nfor x in (3,):\n    pass\n"}
    assert run(write(files), tmp_path).answer() == (1, {1: 1, 2: 1}, "torch.nn", [1])


@pytest.mark.parametrize(
    "entry, words",
    [
        ("from .missing import x\n", r"entry\.py, line 1: x is no module of missing"),
        ("\nfrom . import missing\n", r"entry\.py, line 2: missing is no module of diffad"),
        ("from .leaf import missing\n", r"entry\.py, line 1: leaf\.py has no global missing"),
        ("from .leaf import *\n", r"line 1: import names one by one"),
        ("from .. import leaf\n", r"line 1: the import reaches beyond diffad"),
        ("import diffad.leaf\n", r"line 1: write `from diffad import"),
        ("from __future__ import annotations\n", r"line 1: .*__future__"),
        ("from .coded.part import x\n", r"coded/__init__\.py: holds more than a docstring"),
        ("from .loop import x\n", r"modules import each other: loop\.py -> room/back\.py -> loop\.py"),
        ("sum = 1\n", r"entry\.py: sum would hide Python's own"),
        ("sys = 1\n", r"sys of entry\.py already means something else in the file's header"),
    ],
)
def test_what_can_not_be_written_is_named(entry, words):
    files = {
        "entry.py": entry,
        "leaf.py": "LEAF = 1\n",
        "coded/__init__.py": "from .part import x\ny = x + 1\n",
        "coded/part.py": "x = 1\n",
        "loop.py": "from .room.back import y\nx = 1\n",
        "room/back.py": "from ..loop import x\ny = 1\n",
    }
    with pytest.raises(ValueError, match=words):
        write(files)


def test_the_packages_own_code_runs(tmp_path):
    module = run(single_file_code(diffad.__version__), tmp_path)
    assert module.DiffADPipeline is not diffad.DiffADPipeline and module.DiffADPipeline.__module__ == "single_file"
    scores = np.arange(1.0, 20.0)
    assert module.conformal_threshold(scores, 0.1) == conformal.conformal_threshold(scores, 0.1) == 18.0


def test_the_packages_own_code_asks_for_nothing_that_the_card_does_not_name():
    tree = ast.parse(single_file_code(diffad.__version__))
    imported = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in imported} <= INSTALLED_WITH_THE_CARD
    # Within functions too: diffusers asks every reader for all that the text imports. The backbone's package is on the card.
    later = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0] for node in later}
    assert names <= INSTALLED_WITH_THE_CARD | {"timm", "transformers"}


def test_nothing_that_stands_above_the_pipeline_is_written():
    rooms = {module.name.partition(".")[0] for module in modules_needed("pipeline_diffad")}
    assert not rooms & {"data", "evaluation", "jobs", "hub", "app", "cli"}
    assert {"imaging", "diffusion", "models", "scoring", "repair"} <= rooms


def test_names_tell_codes_apart():
    assert code_module_name("a") != code_module_name("b")
    assert code_module_name("a").isidentifier()


def test_component_code_names_no_file_for_diffusers_to_look_for(tmp_path):
    (tmp_path / "component.py").write_text(component_code("diffad_code_0", ["B", "A", "B"]))
    assert "A = code.A\nB = code.B\n" in (tmp_path / "component.py").read_text()
    assert dynamic_modules_utils.check_imports(tmp_path / "component.py") == []
