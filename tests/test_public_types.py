"""Every public function and method says what it takes and what it returns, and public names what they are for."""

import ast
import inspect

import diffad
import pytest
from test_import_order import MODULES

SPECIAL = ("__init__", "__call__", "__enter__", "__iter__", "__len__", "__getitem__")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in SPECIAL


def public_functions(body: list[ast.stmt], prefix: str = "") -> dict[str, Function]:
    """Functions of a module and methods of its classes, by their names; those inside functions are nobody else's."""
    found: dict[str, Function] = {}
    for node in body:
        if isinstance(node, Function) and is_public(node.name):
            found[prefix + node.name] = node
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            found |= public_functions(node.body, f"{prefix}{node.name}.")
    return found


def missing_types(function: Function, is_method: bool) -> list[str]:
    """Arguments without a type, those taken by `*` and `**` included, and `return`."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    arguments = arguments[is_method and not is_static :] + function.args.kwonlyargs
    arguments += filter(None, (function.args.vararg, function.args.kwarg))
    missing = [argument.arg for argument in arguments if argument.annotation is None]
    return missing + ["return"] * (function.returns is None and function.name != "__init__")


def bare_types(function: Function) -> list[str]:
    """Names of containers in a function's types that don't say what they hold, and `object`."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    types = [annotation for annotation in (function.returns, *(a.annotation for a in arguments)) if annotation is not None]
    nodes = [node for annotation in types for node in ast.walk(annotation)]
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Subscript)}
    names = [node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in inner]
    return [name for name in names if name in ("dict", "list", "tuple", "object", "Callable", "Mapping", "Sequence")]


def untyped(source: str) -> dict[str, list[str]]:
    missing = {
        name: missing_types(function, is_method="." in name)
        for name, function in public_functions(ast.parse(source).body).items()
    }
    return {name: arguments for name, arguments in missing.items() if arguments}


def test_missing_types_are_found():
    source = """
def one(a, b: int, *args, c=1, **kwargs): ...
def _hidden(a): ...
class Public:
    def __init__(self, a, b: int): ...
    @property
    def value(self): ...
    @classmethod
    def made(cls, a: int) -> "Public":
        def inner(x): ...
    @staticmethod
    def plain(a) -> None: ...
    def _own(self, a): ...
class _Hidden:
    def method(self, a): ...
"""
    expected = {
        "one": ["a", "c", "args", "kwargs", "return"],
        "Public.__init__": ["a"],
        "Public.value": ["return"],
        "Public.plain": ["a"],
    }
    assert untyped(source) == expected


def test_bare_types_are_found():
    source = "def one(a: dict[str, list] | None, b: tuple[int, ...], *, c: object = 1) -> Sequence[Mapping]: ..."
    assert sorted(bare_types(ast.parse(source).body[0])) == ["Mapping", "list", "object"]


@pytest.mark.parametrize("name", sorted({f"diffad{source}" for source in diffad._SOURCES.values() if source[0] == "."}))
def test_containers_of_the_public_names_say_what_they_hold(name):
    functions = public_functions(ast.parse(MODULES[name].read_text(encoding="utf-8")).body)
    bare = {name: bare_types(function) for name, function in functions.items()}
    assert not {name: types for name, types in bare.items() if types}


def test_public_names_are_typed():
    missing = {name: untyped(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert {name: functions for name, functions in missing.items() if functions} == {}


@pytest.mark.parametrize("name", [name for name, source in diffad._SOURCES.items() if source[0] == "."])
def test_public_names_and_their_members_are_described(name):
    value = getattr(diffad, name)
    members = vars(value) if isinstance(value, type) else {}
    methods = {key: member for key, member in members.items() if key[0] != "_" and hasattr(member, "__get__")}
    described = {name: value} | {key: getattr(value, key) for key in methods}
    assert not [key for key, member in described.items() if not inspect.getdoc(member)]
