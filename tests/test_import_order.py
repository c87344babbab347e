"""The house's order: each room imports only what stands before it, in no circle; small files, a class of each name, and a
sentence at every door."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import diffad
import pytest

ROOT = Path(__file__).parents[1]
# In the order in which they may import each other; `pipeline` are the modules pipeline_*, `diffad_training` is training/.
ROOMS = (
    "system",
    "imaging",
    "diffusion",
    "models",
    "scoring",
    "monitoring",
    "runtime",
    "repair",
    "pipeline",
    "data",
    "evaluation",
)
ROOMS += ("jobs", "cluster", "watch", "hub", "export", "diffad_training", "app", "serve", "cli")
FORMULAS = ("diffad.scoring.terms", "diffad.diffusion.losses", "diffad.scoring.conformal")
# Modules that import by a text, which is not looked for otherwise, and why.
IMPORTED_BY_TEXT = {
    "diffad": "public names, when they are asked for",
    "diffad.models.lite_weights": "a package of published weights, which only training needs",
    "diffad.pipeline_saving": "push_to_hub, which every pipeline of diffusers has, needs the room hub, which stands above it",
}
MAY_REEXPORT = ("diffad.data", "diffad.cli", "diffad.evaluation.report", "diffad.runtime")
FOLDERS = {"diffad": ROOT / "pipelines/diffad", "diffad_training": ROOT / "training"}


def module_files() -> dict[str, Path]:
    """Files of the package and of training by dotted module names; a folder's `__init__.py` has the folder's name."""
    files = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            files[".".join([package, *parts]).removesuffix(".__init__")] = path
    return files


def executed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, functions included, but those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from (other, *executed_nodes(other))
        else:
            yield from executed_nodes(child)


def imported_modules(name: str, source: str, known: set[str], is_folder: bool = False) -> set[str]:
    """Modules of ours that a module imports anywhere in its text.

    Args:
        name: of the module, dotted.
        source: its text.
        known: all modules; another name that is imported is a global of one of them, or, failing that, of no module.
        is_folder: whether the module is a folder's `__init__.py`.
    """
    package = name.split(".") if is_folder else name.split(".")[:-1]
    found = set()
    for node in executed_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named = node.module.split(".") if node.module else []
            origin = ".".join([*package[: len(package) + 1 - node.level], *named] if node.level else named)
            for alias in node.names:
                below = f"{origin}.{alias.name}"
                found.add(below if below in known else public_source(alias.name) if origin == "diffad" else origin)
    return {module for module in found if module.partition(".")[0] in FOLDERS}


def public_source(name: str) -> str:
    """Module of a name that is imported from the package itself."""
    if name in diffad._SOURCES:
        source = diffad._SOURCES[name]
        return f"diffad{source}" if source.startswith(".") else source
    return "diffad" if name in vars(diffad) else f"diffad.{name}"


def room(module: str) -> str | None:
    """The room that a module stands in; None for the package's own `__init__` and the leaves beside it, open to all."""
    parts = module.split(".")
    chosen = parts[0] if parts[0] == "diffad_training" else parts[1] if len(parts) > 1 else ""
    if chosen.startswith("pipeline_") and chosen != "pipeline_output":
        return "pipeline"
    return chosen if chosen in ROOMS else None


MODULES = module_files()
IMPORTS = {
    name: imported_modules(name, path.read_text(encoding="utf-8"), set(MODULES), path.name == "__init__.py")
    for name, path in MODULES.items()
}


def test_imports_are_found_wherever_they_are_executed():
    source = """
import numpy, diffad.system.memory
from typing import TYPE_CHECKING
from .. import imaging, __version__, gone
from ..imaging.maps import resize_map
from . import terms as score_terms
from diffad import Calibration, ModelMixin
if TYPE_CHECKING:
    from ..cli import app
else:
    from ..data import find_layout
def function():
    class Local:
        from diffad_training import config
"""
    known = {"diffad", "diffad.scoring", "diffad.scoring.terms", "diffad.imaging", "diffad.imaging.maps", "diffad.data"}
    known |= {"diffad_training", "diffad_training.config"}
    expected = known - {"diffad.scoring", "diffad_training"} | {
        "diffad.system.memory",
        "diffad.scoring.calibration",
        "diffad.gone",
    }
    assert imported_modules("diffad.scoring.module", source, known) == expected
    assert imported_modules("diffad.scoring", "from .terms import x\nfrom . import y", known, True) == {
        "diffad.scoring.terms",
        "diffad.scoring",
    }
    assert {"diffad.imaging.maps", "diffad.pipeline_saving"} <= IMPORTS["diffad.pipeline_diffad"]
    assert {room(name) for name in MODULES} == {None, *ROOMS}


def test_what_is_imported_is_there():
    gone = {name: modules - set(MODULES) for name, modules in IMPORTS.items()}
    assert len(IMPORTS) > 300 and {name: modules for name, modules in gone.items() if modules} == {}


def against_the_order(name: str, modules: set[str]) -> set[str]:
    """Those of the modules that a module imports which it must not."""
    allowed = {None} if room(name) is None else {None, *ROOMS[: ROOMS.index(room(name)) + 1]}
    return {module for module in modules if room(module) not in allowed}


def test_a_module_imports_only_what_stands_before_its_room():
    assert against_the_order("diffad.scoring.terms", {"diffad.models.gaussian", "diffad.hub.push"}) == {"diffad.hub.push"}
    # The package itself has public names from everywhere, imported when they are asked for.
    found = {name: against_the_order(name, modules) for name, modules in IMPORTS.items() if name != "diffad"}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_no_modules_import_each_other():
    sorter = TopologicalSorter({name: modules for name, modules in IMPORTS.items() if name != "diffad"})
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_import_none_of_ours(name):
    assert not IMPORTS[name]


def test_imports_by_text_are_known():
    found = set()
    for name, path in MODULES.items():
        nodes = executed_nodes(ast.parse(path.read_text(encoding="utf-8")))
        called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        found |= {name} if called & {"import_module", "importlib.import_module", "__import__"} else set()
    assert found == set(IMPORTED_BY_TEXT)


def test_a_room_says_in_one_sentence_what_lives_there():
    for name in [name for name, path in MODULES.items() if path.name == "__init__.py" and name != "diffad"]:
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        assert re.fullmatch(r"[^.]([^.]|\.(?!\s))*\.", ast.get_docstring(tree) or ""), name
        assert len(tree.body) == 1 or name in MAY_REEXPORT, name


def test_every_folder_of_modules_is_a_room_with_a_door():
    for folder in FOLDERS.values():
        for inner in {path.parent for path in folder.rglob("*.py")}:
            assert (inner / "__init__.py").is_file(), inner


def test_no_two_public_classes_have_one_name():
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    assert len(found) > 100
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("folder", ["pipelines", "training", "tests"])
def test_no_file_is_long(folder):
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert lines
    long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 400}
    assert not long


def test_the_pipeline_fits_on_a_few_screens():
    count = len(MODULES["diffad.pipeline_diffad"].read_text(encoding="utf-8").splitlines())
    assert count <= 300
