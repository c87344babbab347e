"""Texts that others chose, such as the names of files, on their way into tables and pages."""

import re

LONGEST_REASON = 300  # characters
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
# What makes a spreadsheet take a cell for a formula, after as many apostrophes as were put before it.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def printable(text: str) -> str:
    """Puts replacement characters for what no table or page can hold, such as bytes of a file's name that are not UTF-8."""
    return _HALF_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(error: Exception) -> str:
    """An error's message, or its beginning, without line feeds, to be part of another."""
    return " ".join(str(error).split())[:LONGEST_REASON]


def safe_cell(text: str) -> str:
    """A cell of a CSV table that no spreadsheet runs as a formula: one that would be gets an apostrophe before it."""
    return f"'{text}" if _FORMULA.match(text) else text


def original_text(cell: str) -> str:
    """The text that [`safe_cell`] made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
