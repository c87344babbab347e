"""The package's modules as syntax trees: which module an import means, and which modules one needs before it can run."""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath

from ..model_index import PACKAGE

# A file's text by its path below the package's folder, such as `scoring/terms.py`; None where there is no such file.
ReadFile = Callable[[str], str | None]


class When(Enum):
    """When an import statement is executed."""

    WITH_MODULE = "as the module is imported"
    IN_FUNCTION = "as a function is called"
    NEVER = "for type checkers only"


@dataclass(frozen=True)
class Imported:
    """One name that a statement imports from the package.

    Args:
        name: that it is bound to.
        module: dotted, below the package; empty for the package itself.
        attribute: global of that module, or None where the module itself is imported.
    """

    name: str
    module: str
    attribute: str | None


@dataclass
class Module:
    """A module of the package.

    Args:
        name: dotted, below the package: `scoring.terms`.
        source: its text.
        tree: its syntax.
        imports: statements that import from the package, in their order.
    """

    name: str
    source: str
    tree: ast.Module
    imports: list[tuple[ast.ImportFrom, When, list[Imported]]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return module_path(self.name)


def module_path(name: str) -> str:
    """`scoring.terms` as `scoring/terms.py`."""
    return f"{name.replace('.', '/')}.py"


def read_package_file(path: str) -> str | None:
    """Text of one of this package's files, the [`ReadFile`] of the installed package."""
    file = Path(__file__).parents[1] / path
    return file.read_text(encoding="utf-8") if file.is_file() else None


def modules_needed(entry: str, read: ReadFile = read_package_file) -> list[Module]:
    """A module and all that it imports from the package as it is imported, each after those that it needs.

    Raises:
        ValueError: naming file and line of an import that has no meaning, modules that import each other, or packages whose
            `__init__.py` has code of its own.
    """
    ordered: dict[str, Module] = {}
    _add_after_imports(entry, read, ordered, ())
    return list(ordered.values())


def _add_after_imports(name: str, read: ReadFile, ordered: dict[str, Module], importers: tuple[str, ...]) -> None:
    if name in ordered:
        return
    if name in importers:
        circle = " -> ".join(map(module_path, (*importers[importers.index(name) :], name)))
        raise ValueError(f"modules import each other: {circle}")
    module = read_module(name, read)
    for statement, when, imported in module.imports:
        for one in imported if when is When.WITH_MODULE else ():
            if read(module_path(one.module)) is None:
                raise _error(module, statement, f"{one.attribute} is no module of {one.module or PACKAGE}")
            _add_after_imports(one.module, read, ordered, (*importers, name))
    ordered[name] = module


def read_module(name: str, read: ReadFile = read_package_file) -> Module:
    """One module with its imports from the package.

    Raises:
        ValueError: as `modules_needed`.
    """
    source = read(module_path(name))
    if source is None:
        raise ValueError(f"{module_path(name)}: no such module")
    module = Module(name, source, ast.parse(source, module_path(name)))
    for folder in PurePosixPath(module.path).parents[:-1]:
        _check_has_no_code(f"{folder}/__init__.py", read)
    for statement, when in _import_statements(module.tree.body, When.WITH_MODULE):
        if isinstance(statement, ast.ImportFrom) and (statement.level or _top_name(statement.module) == PACKAGE):
            module.imports.append((statement, when, list(_resolve(module, statement, read))))
        elif isinstance(statement, ast.Import) and PACKAGE in (_top_name(alias.name) for alias in statement.names):
            raise _error(module, statement, f"write `from {PACKAGE} import ...`, or import relatively")
        elif isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            raise _error(module, statement, "an import from __future__ would count for all modules of one file")
    return module


def is_for_type_checkers(node: ast.AST) -> bool:
    """Whether a node is `if TYPE_CHECKING:`, whose body never runs."""
    test = node.test if isinstance(node, ast.If) else None
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _import_statements(nodes: Iterable[ast.AST], when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, when
        elif is_for_type_checkers(node):
            yield from _import_statements(node.body, When.NEVER)
            yield from _import_statements(node.orelse, when)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and when is When.WITH_MODULE
            yield from _import_statements(ast.iter_child_nodes(node), When.IN_FUNCTION if is_function else when)


def _resolve(module: Module, statement: ast.ImportFrom, read: ReadFile) -> Iterator[Imported]:
    package = module.name.split(".")[:-1]
    if statement.level - 1 > len(package):
        raise _error(module, statement, f"the import reaches beyond {PACKAGE}")
    named = statement.module.split(".") if statement.module else []
    # Absolute: below the package's own name. Relative: one dot is the module's folder, each further one a folder up.
    origin = named[1:] if statement.level == 0 else [*package[: len(package) - statement.level + 1], *named]
    for alias in statement.names:
        if alias.name == "*":
            raise _error(module, statement, "import names one by one, not *")
        below = ".".join([*origin, alias.name])
        # A submodule, or a global of a module or of a package's __init__.py.
        is_module = read(module_path(below)) is not None
        yield Imported(alias.asname or alias.name, below if is_module else ".".join(origin), None if is_module else alias.name)


def _check_has_no_code(path: str, read: ReadFile) -> None:
    if not all(map(_is_without_effect, ast.parse(read(path) or "", path).body)):
        raise ValueError(
            f"{path}: holds more than a docstring and names of its own modules, which one file for all modules has no place for"
        )


def _is_without_effect(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, or only makes a name of the package's own modules reachable in the package."""
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets] == ["__all__"]
    is_own = isinstance(node, ast.ImportFrom) and node.level == 1
    return is_own or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _top_name(dotted: str) -> str:
    return dotted.partition(".")[0]


def _error(module: Module, statement: ast.stmt, words: str) -> ValueError:
    return ValueError(f"{module.path}, line {statement.lineno}: {words}")
