"""Journals, run records and tables damaged in thousands of seeded ways: a right result, or one line naming the file."""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from diffad.jobs.table import SCHEMA, read_rows, write_table
from prediction_stub import Stub, run

COUNTS = [pytest.param(150, id="short"), pytest.param(10_000, id="long", marks=pytest.mark.long)]
VALUES = [b"null", b"true", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"=1"', b'"\\ud800"', b"9" * 400, b"[" * 2000]
SECONDS = 5.0  # for one input
MIB = 300.0  # growth over all


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A file as broken disks, editors and programs leave it."""
    for _ in range(rng.integers(1, 4)):
        content = (_with_other_bytes if rng.random() < 0.6 else _with_other_lines)(content, rng)
    return content


def _with_other_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    end = min(end, start + int(rng.integers(1, 40)))
    value = VALUES[rng.integers(len(VALUES))]
    middles = [b"", rng.bytes(end - start), bytes(end - start), 2 * content[start:end], value]
    return content[:start] + (middles[rng.integers(len(middles))] + content[end:] if rng.random() < 0.8 else b"")


def _with_other_lines(content: bytes, rng: np.random.Generator) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    i = int(rng.integers(len(lines)))
    others = [[], [lines[i]] * 2, [VALUES[rng.integers(len(VALUES))] + b"\n"]]
    if rng.random() < 0.8:
        lines[i : i + 1] = others[rng.integers(len(others))]
    else:
        lines = [lines[j] for j in rng.permutation(len(lines))]
    return b"".join(lines)


def check_all(count: int, attempt) -> None:
    """Calls `attempt` with a generator for each input; which may raise a ValueError of one line with the file's name."""
    process = psutil.Process()
    before = process.memory_info().rss
    for seed in range(count):
        started = time.perf_counter()
        try:
            attempt(np.random.default_rng(seed))
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, seed
            assert "out." in str(error), (seed, error)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        assert time.perf_counter() - started < SECONDS, seed
    assert (process.memory_info().rss - before) / 2**20 < MIB


def unfinished_run(folder: Path) -> bytes:
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), folder / "out.jsonl", 12)
    return (folder / "out.jsonl.journal").read_bytes()


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_journals(tmp_path, count):
    journal, output = tmp_path / "out.jsonl.journal", tmp_path / "out.jsonl"
    whole = unfinished_run(tmp_path)

    def attempt(rng):
        content = damaged(whole, rng)
        journal.write_bytes(content)
        output.unlink(missing_ok=True)
        try:
            summary = run(Stub(), output, 12)
        except ValueError:
            assert journal.read_bytes() == content and not output.exists()
            raise
        rows = list(read_rows(output))
        assert [row["path"] for row in rows] == [str(i) for i in range(12)] and summary.images == 12
        assert not journal.exists()

    check_all(count, attempt)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_records(tmp_path, count):
    record, output = tmp_path / "out.jsonl.run.json", tmp_path / "out.jsonl"
    run(Stub(), output, 12)
    whole, table = record.read_bytes(), output.read_bytes()

    def attempt(rng):
        record.write_bytes(damaged(whole, rng))
        try:
            assert run(Stub(), output, 12).was_complete
        finally:
            assert output.read_bytes() == table

    check_all(count, attempt)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("count", COUNTS)
def test_damaged_tables(tmp_path, count, suffix):
    output = tmp_path / f"out.{suffix}"
    row = {"label": "good", "score": 1.5, "p_value": 0.5, "boxes": [[1, 2, 3, 4]], "defects": 1, "category": "'=nut"}
    write_table([{"path": f"part {i}.png", **row} for i in range(12)], output)
    whole = output.read_bytes()

    def attempt(rng):
        output.write_bytes(damaged(whole, rng))
        for found in read_rows(output):
            assert isinstance(found["path"], str)

    check_all(count, attempt)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("count", COUNTS)
def test_any_text_is_read_as_it_was_written(tmp_path, count, suffix):
    output = tmp_path / f"out.{suffix}"
    alphabet = [
        "=",
        "+",
        "-",
        "@",
        "'",
        '"',
        ",",
        ";",
        "\t",
        "\n",
        "\r",
        "a",
        "\N{SNOWMAN}",
        "\\",
        "\u2028",
        "\ufeff",
        " ",
        "\x00",
    ]
    rng = np.random.default_rng(0)
    rows = [
        {"path": "".join(rng.choice(alphabet, rng.integers(1, 6))), "score": float(rng.normal()), "error": None}
        for _ in range(count)
    ]
    write_table(rows, output)
    found = list(read_rows(output))
    assert [row["path"] for row in found] == [row["path"] for row in rows]
    assert list(found[0]) == SCHEMA.names
