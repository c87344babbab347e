"""JSON files from elsewhere, checked for what is read from them."""

from collections.abc import Mapping
from pathlib import Path

from ..model_index import read_json_object


def read_checked(path: Path, what: str, kinds: Mapping[str, type]) -> dict:
    """Content of a JSON file in which some values must be there.

    Args:
        path: of the file.
        what: the file should be, for errors.
        kinds: type of each value by its key, `outer.inner` where objects are nested; `float` is any number.

    Raises:
        ValueError: naming the file and the first value that is missing or of another type.
    """
    content = read_json_object(path)
    for key, kind in kinds.items():
        value = content
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        check_kind(path, what, key, value, kind)
    return content


def check_kind(path: Path, what: str, key: str, value: object, kind: type) -> None:
    """Raises ValueError naming file and key unless the value is of the kind."""
    if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
        found = "missing" if value is None else f"{value!r:.100}"
        raise ValueError(f"{path}: not {what}: {key} is {found}")
