"""The pipeline's code as one file, so that a repository on the Hub can be loaded without diffad installed.

diffusers runs such code from a flat folder that all repositories share, fetches one file per component, and follows relative
imports one step only. So the modules that the pipeline imports are written one after the other into a single file, named
after its content because repositories of several versions may be loaded in one process.
"""

import ast
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ..model_index import PACKAGE

ENTRY_MODULE = "pipeline_diffad"
FILE_PREFIX = "diffad_code_"

_HEADER = '''"""diffad {version}: the package's modules in one file, for reading and running a model without installing it.

Generated; change the package instead.
"""

import importlib
import sys
'''


def read_module(name: str) -> str:
    """Source of one of the package's modules."""
    return (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")


def single_file_code(version: str, entry: str = ENTRY_MODULE, read: Callable[[str], str] = read_module) -> str:
    """The entry module and all that it imports from the package, as the text of one module.

    Imports within functions are for what needs the installed package (such as training), and keep doing so.

    Raises:
        ValueError: if two modules give one name to different things, or import in a way that can't be rewritten.
    """
    sources: dict[str, str] = {}
    _collect(entry, read, sources)
    _check_names(sources)
    parts = [_HEADER.format(version=version)]
    parts += [f"# {PACKAGE}/{name}.py\n\n{_without_relative_imports(source)}" for name, source in sources.items()]
    code = "\n\n".join(parts)
    compile(code, f"<{PACKAGE} in one file>", "exec")
    return code


def code_module_name(code: str) -> str:
    """Name of the module that holds `code`."""
    return FILE_PREFIX + hashlib.sha256(code.encode()).hexdigest()[:12]


def component_module_name(code_module: str) -> str:
    """Name of the module in every component's folder."""
    return f"{code_module}_components"


def component_code(code_module: str, class_names: Iterable[str]) -> str:
    """Text of the module in every component's folder: the classes of the pipeline's code, which diffusers has loaded before."""
    lines = [f'"""Classes of {code_module}.py, where diffusers looks for a component\'s class."""', ""]
    # "from .module import" would make diffusers look for the file in the component's folder.
    lines += [f"from . import {code_module} as code", ""]
    lines += [f"{name} = code.{name}" for name in sorted(set(class_names))]
    return "\n".join(lines) + "\n"


def _collect(name: str, read: Callable[[str], str], sources: dict[str, str]) -> None:
    """Adds the module after all that it imports."""
    source = read(name)
    for node in ast.parse(source).body:
        if _is_relative(node):
            for imported in [node.module] if node.module else [alias.name for alias in node.names]:
                if imported not in sources:
                    _collect(imported, read, sources)
    sources[name] = source


def _is_relative(node: ast.AST) -> bool:
    if not isinstance(node, ast.ImportFrom) or node.level == 0:
        return False
    if node.level > 1 or "." in (node.module or ""):
        raise ValueError(f"line {node.lineno}: import from a subpackage can't be written into one file")
    return True


def _without_relative_imports(source: str) -> str:
    tree, lines = ast.parse(source), source.splitlines()
    for node in ast.walk(tree):
        if _is_relative(node):
            statement = _same_file_import(node) if node in tree.body else _installed_package_import(node)
            # One line for each that was there, so that the line numbers of other nodes stay valid.
            blanks = [""] * (node.end_lineno - node.lineno)
            lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + statement, *blanks]
    return "\n".join(line.rstrip() for line in lines).strip() + "\n"


def _same_file_import(node: ast.ImportFrom) -> str:
    if node.module is None:  # the imported module's names are this file's names
        return "; ".join(f"{alias.asname or alias.name} = sys.modules[__name__]" for alias in node.names)
    return "; ".join(f"{alias.asname} = {alias.name}" for alias in node.names if alias.asname)


def _installed_package_import(node: ast.ImportFrom) -> str:
    # Not an import statement: diffusers would ask every user to install what it names.
    module = f"{PACKAGE}.{node.module}" if node.module else PACKAGE
    return "; ".join(f'{alias.asname or alias.name} = importlib.import_module("{module}").{alias.name}' for alias in node.names)


def _check_names(sources: dict[str, str]) -> None:
    owners: dict[str, tuple] = {}
    for module, source in sources.items():
        for name, owner in _global_names(ast.parse(source), module):
            if owners.setdefault(name, owner) != owner:
                raise ValueError(f"{name} of {module}.py already means something else in {owners[name][0]}.py: rename one")


def _global_names(tree: ast.Module, module: str) -> Iterable[tuple[str, tuple]]:
    """Global names of a module with the place they come from: `(module,)`, or `(module, original name)` if imported."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, (alias.name if alias.asname else name, None)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if node.level and node.module:
                    yield alias.asname or alias.name, (node.module,) if not alias.asname else (node.module, alias.name)
                else:
                    yield alias.asname or alias.name, (node.module or alias.name, alias.name)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, (module,)
        else:
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield part.id, (module,)
