"""The pipeline's code as one file, so that a repository on the Hub can be loaded without diffad installed.

diffusers runs such code from a flat folder that all repositories share, fetches one file per component, and follows relative
imports one step only. So the modules that the pipeline imports are written one after the other into a single file, named
after its content because repositories of several versions may be loaded in one process.
"""

import ast
import builtins
import hashlib
from collections.abc import Iterable, Iterator, Sequence

from ..model_index import PACKAGE
from .module_tree import Imported, Module, ReadFile, When, is_for_type_checkers, module_path, modules_needed, read_package_file

ENTRY_MODULE = "pipeline_diffad"
FILE_PREFIX = "diffad_code_"

_HEADER = '''"""diffad {version}: the package's modules in one file, for reading and running a model without installing it.

Generated; change the package instead.
"""

import importlib
import sys
'''
_HEADER_NAMES = {"importlib": "importlib", "sys": "sys"}


def single_file_code(version: str, entry: str = ENTRY_MODULE, read: ReadFile = read_package_file) -> str:
    """The entry module and all that it imports from the package, as the text of one module.

    Imports within functions are for what needs the installed package (such as training), and keep doing so.

    Args:
        version: of the package.
        entry: dotted name of the module, below the package.
        read: text of the package's files by their paths, None where there is none.

    Raises:
        ValueError: if two modules give one name to different things, or import in a way that can't be rewritten.
    """
    modules = modules_needed(entry, read)
    _check_names(modules)
    parts = [_HEADER.format(version=version)]
    parts += [f"# {PACKAGE}/{module.path}\n\n{_with_rewritten_imports(module)}" for module in modules]
    code = "\n\n".join(parts)
    compile(code, f"<{PACKAGE} in one file>", "exec")
    return code


def code_module_name(code: str) -> str:
    """Name of the module that holds `code`."""
    return FILE_PREFIX + hashlib.sha256(code.encode()).hexdigest()[:12]


def component_code(code_module: str, class_names: Iterable[str]) -> str:
    """Text of the module in every component's folder: the classes of the pipeline's code, which diffusers has loaded before."""
    lines = [f'"""Classes of {code_module}.py, where diffusers looks for a component\'s class."""', ""]
    # "from .module import" would make diffusers look for the file in the component's folder.
    lines += [f"from . import {code_module} as code", ""]
    lines += [f"{name} = code.{name}" for name in sorted(set(class_names))]
    return "\n".join(lines) + "\n"


def _with_rewritten_imports(module: Module) -> str:
    lines = module.source.encode().splitlines(keepends=True)
    for node, when, imported in reversed(module.imports):  # from below, so that the positions above stay valid
        text = "; ".join(filter(None, (_assignment(one, when, nested=node not in module.tree.body) for one in imported)))
        before, after = lines[node.lineno - 1][: node.col_offset], lines[node.end_lineno - 1][node.end_col_offset :]
        lines[node.lineno - 1 : node.end_lineno] = [before + text.encode() + after]
    return "\n".join(line.rstrip() for line in b"".join(lines).decode().split("\n")).strip() + "\n"


def _assignment(imported: Imported, when: When, nested: bool) -> str:
    """What stands in the file in place of an import of one name."""
    name, attribute = imported.name, imported.attribute
    if when is When.NEVER:
        return "pass"
    if when is When.WITH_MODULE:
        # A module that was imported is this file, whose globals are its globals.
        value = "sys.modules[__name__]" if attribute is None else attribute
        # A block needs its statement, and a class its attribute.
        return f"{name} = {value}" if nested or name != attribute else ""
    # Not an import statement: diffusers would ask every user to install what it names.
    module = f"{PACKAGE}.{imported.module}" if imported.module else PACKAGE
    value = f'importlib.import_module("{module}")'
    return f"{name} = {value}" if attribute is None else f"{name} = {value}.{attribute}"


def _check_names(modules: Sequence[Module]) -> None:
    """Refuses names by which one file would mean something else than the modules apart."""
    origins: dict[str, dict[str, str]] = {}  # of the globals of each module
    owners: dict[str, str] = dict.fromkeys(_HEADER_NAMES, "the file's header")
    meanings = dict(_HEADER_NAMES)
    for module in modules:
        origins[module.name] = _global_names(module, origins)
        for name, meaning in origins[module.name].items():
            if hasattr(builtins, name):
                raise ValueError(f"{module.path}: {name} would hide Python's own {name} from the other modules: rename it")
            owner = owners.setdefault(name, module.path)
            if meanings.setdefault(name, meaning) != meaning:
                raise ValueError(f"{name} of {module.path} already means something else in {owner}: rename one")


def _global_names(module: Module, origins: dict[str, dict[str, str]]) -> dict[str, str]:
    """Where each global of a module comes from, through modules that only pass it on: `.scoring.terms.kl_map`, `torch.nn`."""
    found: dict[str, set[str]] = {}
    for name, origin in _bindings(module.tree.body):
        found.setdefault(name, set()).add(origin or f".{module.name}.{name}")
    for node, when, imported in module.imports:
        for one in imported if when is When.WITH_MODULE else ():
            origin = f".{one.module}"
            if one.attribute is not None:
                origin = origins[one.module].get(one.attribute)
                if origin is None:
                    raise ValueError(
                        f"{module.path}, line {node.lineno}: {module_path(one.module)} has no global {one.attribute}"
                    )
            found.setdefault(one.name, set()).add(origin)
    found.pop("__all__", None)  # nobody imports * from the file
    # What is bound in several ways, as in `try` and `except`, is the module's own.
    return {name: next(iter(some)) if len(some) == 1 else f".{module.name}.{name}" for name, some in found.items()}


def _bindings(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str | None]]:
    """Globals that statements bind, with the origin of those imported from other packages and None for the others."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module.partition(".")[0] != PACKAGE:
                yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, None
        elif is_for_type_checkers(node):
            yield from _bindings(node.orelse)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, None
        # Lambdas and comprehensions have scopes of their own.
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            yield from _bindings(ast.iter_child_nodes(node))
