"""Prints the lowest versions that setup.cfg allows, as pins. The tests run with these so:

    python -m venv .lowest && uv pip install -p .lowest $(python tests/lowest_versions.py) -e '.[test]'
    .lowest/bin/python -m pytest

What setup.cfg does not name, such as the packages that these need, is installed in its newest version that fits.
"""

import re
from configparser import ConfigParser
from pathlib import Path

SETUP = Path(__file__).parent.parent / "setup.cfg"
OWN = "diffad"


def requirements(path: Path = SETUP) -> dict[str, list[str]]:
    """Requirements of every extra, and under the empty name those of the package itself."""
    setup = ConfigParser()
    setup.read(path, encoding="utf-8")
    groups = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    return {extra: [line for line in text.splitlines() if line.strip()] for extra, text in groups.items()}


def lowest(requirement: str) -> str | None:
    """The pin of a requirement's lower bound: `torch==2.10` of `torch>=2.10`; None for extras of this package."""
    name, bound = re.match(r"([\w-]+)(?:\[\w+\])?\s*(?:[>=]=\s*([\d.]+))?", requirement).groups()
    if name == OWN:
        return None
    if bound is None:
        raise ValueError(f"{requirement}: has no lower bound")
    marker = requirement.partition(";")[2].strip()
    return f"{name}=={bound}" + (f"; {marker}" if marker else "")


def main() -> None:
    pins = {lowest(line) for extra, lines in requirements().items() if extra != "peers" for line in lines} - {None}
    # A marker can't be given in a shell's words.
    print(*sorted(pin for pin in pins if ";" not in pin))


if __name__ == "__main__":
    main()
