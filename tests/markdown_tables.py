"""Figures of tables in Markdown, by the names of their rows and columns."""

import re

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def table_rows(text: str) -> list[dict[str, str]]:
    """Rows of all tables, with cells by the names of their columns; what is bold is as if it were not."""
    lines = text.splitlines()
    found: list[dict[str, str]] = []
    columns: list[str] = []
    for i, line in enumerate(lines):
        if not line.startswith("|") or set(line) <= set("|-: "):
            continue
        cells = [cell.strip().replace("**", "") for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        if i + 1 < len(lines) and lines[i + 1].startswith("|---"):
            columns = cells
        else:
            found.append(dict(zip(columns, cells, strict=True)))
    return found


def row_of(text: str, *names: str) -> dict[str, str]:
    """The one row whose first cells are these names."""
    (found,) = [row for row in table_rows(text) if list(row.values())[: len(names)] == list(names)]
    return found


def figures(row: dict[str, str]) -> dict[str, list[float]]:
    """The numbers in each cell of a row that has any."""
    numbers = {name: [float(text.replace(",", "")) for text in NUMBER.findall(cell)] for name, cell in row.items()}
    return {name: values for name, values in numbers.items() if values}
