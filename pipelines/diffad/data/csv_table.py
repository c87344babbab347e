"""Reading CSV files that people make with spreadsheets, editors and scripts."""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from .sample import DataError

DELIMITERS = (",", ";", "\t")
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[^\S\r\n]*(?:\r\n|\r|\n|$)', re.IGNORECASE)  # tells Excel, and is no row
LONGEST = 80  # characters of a cell in an error
WIDE_ENCODINGS = (  # by the mark that they begin with; UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Row = dict[str, str]


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, Row]]:
    """Rows of a CSV file with the numbers of their last lines; cells without surrounding spaces, by columns in lower case.

    Commas, semicolons or tabs separate cells, as a line `sep=;` or the header says. UTF-8, and UTF-16 with its mark.

    Args:
        columns: that there must be; others are given as well.

    Raises:
        DataError: naming the file, the line and the remedy if it can't be read, or columns are missing or occur twice.
    """
    text, skipped = _decoded(path), 0
    separator = SEPARATOR_LINE.match(text)
    if separator:
        text, skipped = text[separator.end() :], 1
    header_line = text.lstrip("\r\n").partition("\n")[0]
    given = (separator[1],) if separator else DELIMITERS
    delimiter = max(given, key=lambda character: len(set(columns) & set(_names(header_line.split(character)))))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num + skipped, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + skipped}: {error}; check its quotation marks") from error
    rows = [(line, row) for line, row in rows if any(row)]
    header = _names(rows[0][1]) if rows else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; its first line must name {', '.join(columns)}")
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise DataError(f"{path}: several columns are called {shown(twice[0])}; rename all but one")
    return [(line, dict(zip(header, row + [""] * len(header)))) for line, row in rows[1:]]


def shown(text: str) -> str:
    """A cell as an error shows it: on one line, and not too long."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _names(header: Sequence[str]) -> list[str]:
    return [name.strip().strip('"').strip().casefold() for name in header]


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    encoding = next((encoding for mark, encoding in WIDE_ENCODINGS if content.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in content:
        raise DataError(f"{path}: no text, or UTF-16 without its mark; save it as CSV UTF-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise DataError(f"{path}: begins like {encoding.upper()}, but is damaged; save it as CSV UTF-8") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 but probably Windows-1252, as older programs save it; save it as CSV UTF-8"
        ) from error
