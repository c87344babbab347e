"""Kept results of the benchmarks: one line of JSON each, and the tables of documents that are rendered from them."""

import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def category_of(model: Path) -> str:
    """Name of the folder that a model was trained on."""
    return Path(json.loads((model / "training_config.json").read_text())["data"]).name


def this_machine(device: torch.device) -> str:
    """What a figure was measured on."""
    return f"{torch.get_num_threads()} threads on {os.cpu_count()} cores {platform.machine()}, {device.type}"


def append_result(path: Path, result: dict) -> None:
    """Adds a line to a file of results; the file and its folder are made where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def latest_results(path: Path, identity: Sequence[str]) -> list[dict]:
    """The newest result of all that agree in the keys of `identity` (one may lack), in the order of the first ones."""
    if not path.is_file():
        return []
    results = map(json.loads, path.read_text().splitlines())
    return list({tuple(result.get(key) for key in identity): result for result in results}.values())


def fill_tables(document: Path, kind: str, table: Callable[[str], str]) -> bool:
    """Fills every `<!-- KIND:NAME -->` (or `<!-- KIND -->`) ... `<!-- /KIND -->` of a document, and says whether it changed.

    Args:
        table: Markdown of the table of that NAME, which is empty where there is none.
    """
    text = document.read_text()
    pattern = re.compile(rf"(<!-- {kind}(?::([\w ]+))? -->\n).*?(<!-- /{kind} -->)", re.DOTALL)
    filled = pattern.sub(lambda match: match[1] + table(match[2] or "") + match[3], text)
    if filled != text:
        document.write_text(filled)
    return filled != text
