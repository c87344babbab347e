"""Text in CSV files that people open in a spreadsheet, where a cell that begins like a formula would be computed."""

import re

FORMULA = re.compile(r"'*[=+\-@\t\r]")
ESCAPED_FORMULA = re.compile(r"'+[=+\-@\t\r]")


def escape_cell(text: str) -> str:
    """Text as a spreadsheet shows it and does not compute it: an apostrophe before what begins with = + - @ or a tab.

    For text only; a negative number is a number.
    """
    return f"'{text}" if FORMULA.match(text) else text


def unescape_cell(text: str) -> str:
    """What [`escape_cell`] was given."""
    return text[1:] if ESCAPED_FORMULA.match(text) else text
