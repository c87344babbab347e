"""The package in one file: what is written, and what can't be."""

import importlib.util
import sys

import diffad
import numpy as np
import pytest
from diffad.hub.single_file import code_module_name, component_code, single_file_code
from diffad.model_index import with_installed_classes, with_repository_code
from diffusers.utils import dynamic_modules_utils


def write(modules: dict[str, str]) -> str:
    return single_file_code("1.2", entry="entry", read=modules.__getitem__)


def run(code: str, tmp_path, name: str = "single_file"):
    """Imports the code as diffusers does: from a file, as a module of its own."""
    path = tmp_path / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_modules_come_before_what_imports_them_and_mean_the_same(tmp_path):
    entry = "from . import shapes\nfrom .constants import (\n    PI,\n    SIDES as N,\n)\n\n\n"
    entry += "def answer():\n    return shapes.area(PI), N\n"
    shapes = "from .constants import PI\n\n\ndef area(r):\n    return PI * r\n"
    code = write({"entry": entry, "shapes": shapes, "constants": "PI, SIDES = 3, 4\n"})
    assert code.index("PI, SIDES = 3, 4") < code.index("def area") < code.index("def answer")
    assert code.count("def area") == 1 and "from ." not in code
    assert run(code, tmp_path).answer() == (9, 4)


def test_imports_within_functions_keep_to_the_installed_package(tmp_path):
    code = write({"entry": "def metrics():\n    from .metrics import detection_metrics\n\n    return detection_metrics\n"})
    assert "from" not in code.partition("def metrics")[2]
    assert run(code, tmp_path).metrics() is diffad.detection_metrics


@pytest.mark.parametrize(
    "module",
    ["def area():\n    pass\n", "area = 1\n", "import os as area\n", "from .third import area\n"],
)
def test_one_name_for_two_things_is_refused(module):
    modules = {"entry": "from . import other\n\n\ndef area():\n    pass\n", "other": module, "third": "area = 2\n"}
    with pytest.raises(ValueError, match="area of entry.py already means something else"):
        write(modules)


def test_the_same_import_in_two_modules_is_no_conflict():
    write({"entry": "import numpy as np\nfrom . import other\n", "other": "import numpy as np\nimport os.path\nimport os\n"})


def test_imports_from_subpackages_are_refused():
    with pytest.raises(ValueError, match="subpackage"):
        write({"entry": "from .cli.push import push\n"})


def test_the_packages_own_code_runs(tmp_path):
    module = run(single_file_code(diffad.__version__), tmp_path)
    assert module.DiffADPipeline is not diffad.DiffADPipeline and module.DiffADPipeline.__module__ == "single_file"
    scores = np.arange(1.0, 20.0)
    assert " sklearn" not in single_file_code(diffad.__version__)  # for training; diffusers would ask every reader for it
    assert module.conformal_threshold(scores, 0.1) == diffad.scoring.calibration.conformal_threshold(scores, 0.1) == 18.0


def test_names_tell_codes_apart():
    assert code_module_name("a") != code_module_name("b")
    assert code_module_name("a").isidentifier()


def test_component_code_names_no_file_for_diffusers_to_look_for(tmp_path):
    (tmp_path / "component.py").write_text(component_code("diffad_code_0", ["B", "A", "B"]))
    assert "A = code.A\nB = code.B\n" in (tmp_path / "component.py").read_text()
    assert dynamic_modules_utils.check_imports(tmp_path / "component.py") == []


def test_model_index_is_changed_there_and_back():
    saved = {
        "_class_name": "DiffADPipeline",
        "_diffusers_version": "0.42.1",
        "unet": ["diffad", "JointUNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    in_repository = with_repository_code(saved, "code_1", "code_1_components")
    assert in_repository["_class_name"] == ["code_1", "DiffADPipeline"]
    assert in_repository["unet"] == ["code_1_components", "JointUNet2DModel"]
    assert in_repository["scheduler"] == saved["scheduler"]
    assert with_installed_classes(in_repository) == saved
    assert with_installed_classes(saved) == saved
