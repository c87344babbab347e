"""Runs that are killed at any point and go on: no row is lost or doubled; other runs, processes and files are kept apart."""

import dataclasses
import fcntl
import json
import multiprocessing
import os
from functools import partial

import psutil
import pyarrow.parquet as pq
import pytest
from diffad.jobs.predict import record_rows, rows_in_batches
from diffad.jobs.resume import Journal, files_digest, only_writer
from diffad.jobs.table import write_table
from PIL import Image
from prediction_stub import Stub, run


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_killed_at_every_byte_of_the_journal_no_row_is_lost_or_doubled(tmp_path, suffix):
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    journal = tmp_path / f"out.{suffix}.journal"
    run(Stub(), whole, 12)
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), output, 12)
    content = journal.read_bytes()
    assert content.count(b"\n") == 1 + 8 and not output.exists()
    last_lines = content.rindex(b"\n", 0, -60)
    for length in range(0 if suffix == "jsonl" else last_lines, len(content) + 1):
        journal.write_bytes(content[:length])
        stub = Stub()
        summary = run(stub, output, 12)
        finished = max(content[:length].count(b"\n") - 1, 0)
        assert stub.scored == [str(i) for i in range(finished, 12) if i % 7 != 3]
        assert summary.images == 12 and summary.unreadable == 2
        assert output.read_bytes() == whole.read_bytes() and not journal.exists()
        output.unlink()


def test_a_machine_that_stopped_leaves_a_block_of_zeros(tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), output, 12)
    with (tmp_path / "out.jsonl.journal").open("ab") as file:
        file.write(b'{"path"' + bytes(100))
    assert run(Stub(), output, 12).images == 12
    assert [row["path"] for row in read_json_lines(output)] == [str(i) for i in range(12)]


def test_killed_between_table_and_the_end_of_the_run(tmp_path):
    output = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), output, 12)
    journal = (tmp_path / "out.csv.journal").read_bytes()
    run(Stub(), output, 12)
    table = output.read_bytes()
    (tmp_path / "out.csv.journal").write_bytes(journal)
    run(Stub(), output, 12)
    assert output.read_bytes() == table


def test_another_run_is_refused_and_the_journal_kept(tmp_path):
    output, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), output, 12)
    content = journal.read_bytes()
    with pytest.raises(ValueError, match="out.csv.journal: belongs .* that differs: model m there, other now"):
        run(Stub(), output, 12, run={"model": "other"})
    assert journal.read_bytes() == content
    assert run(Stub(), output, 12).images == 12


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_finished_table_is_found_and_not_scored_again(tmp_path, suffix):
    output, stub = tmp_path / f"out.{suffix}", Stub()
    summary = run(Stub(), output, 12)
    table = output.read_bytes()
    found = run(stub, output, 12)
    assert found.was_complete and not summary.was_complete and stub.scored == []
    assert dataclasses.replace(found, was_complete=False) == summary and summary.unreadable == 2
    assert output.read_bytes() == table


def test_a_finished_table_of_another_run_is_refused_and_kept(tmp_path):
    output, record = tmp_path / "out.csv", tmp_path / "out.csv.run.json"
    run(Stub(), output, 12)
    with pytest.raises(ValueError, match="out.csv: exists already, of a run that differs: model m there, other now; remove it"):
        run(Stub(), output, 12, run={"model": "other"})
    table = output.read_bytes()
    output.write_bytes(table + b"13,0.5\n")
    with pytest.raises(ValueError, match="out.csv: exists already; remove it"):
        run(Stub(), output, 12)
    output.write_bytes(table)
    record.unlink()
    with pytest.raises(ValueError, match="out.csv: exists already; remove it"):
        run(Stub(), output, 12)
    assert output.read_bytes() == table
    output.unlink()
    run(Stub(), output, 12, run={"model": "other"})
    assert run(Stub(), output, 12, run={"model": "other"}).was_complete


def test_a_run_that_ended_before_its_first_row_binds_nobody(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="0"), tmp_path / "out.csv", 12)
    assert (tmp_path / "out.csv.journal").exists()
    assert run(Stub(), tmp_path / "out.csv", 12, run={"model": "other"}).images == 12


def test_processes_started_at_once_score_every_image_once(tmp_path):
    """Some start while others run or end: one runs from the first image to the last, the others are turned away or find it."""
    output, start = tmp_path / "out.jsonl", multiprocessing.get_context("fork")
    outcomes = start.SimpleQueue()
    barrier = start.Barrier(4)

    def attempt():
        barrier.wait()
        for _ in range(50):
            stub = Stub()
            try:
                kind = "found" if run(stub, output, 12).was_complete else "finished"
                outcomes.put((kind, len(stub.scored)))
            except ValueError as error:
                outcomes.put(("refused", str(error)))
            except BaseException as error:
                outcomes.put(("failed", repr(error)))

    processes = [start.Process(target=attempt) for _ in range(4)]
    for process in processes:
        process.start()
    found = [outcomes.get() for _ in range(4 * 50)]
    for process in processes:
        process.join()
    assert [outcome for outcome in found if outcome[0] not in ("found", "refused")] == [("finished", 10)]
    assert {scored for kind, scored in found if kind == "found"} <= {0}
    assert all("another process is writing it" in text for kind, text in found if kind == "refused")
    assert [row["path"] for row in read_json_lines(output)] == [str(i) for i in range(12)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.jsonl.lock", "out.jsonl", "out.jsonl.run.json"]


def test_a_run_that_starts_while_another_ends_is_turned_away(tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    close = Journal.__exit__

    def second_run(journal, *exception):
        close(journal, *exception)
        monkeypatch.undo()
        with pytest.raises(ValueError, match="another process is writing it"):
            run(Stub(), output, 12)

    monkeypatch.setattr(Journal, "__exit__", second_run)
    assert run(Stub(), output, 12).images == 12


def test_a_lock_that_ends_leaves_no_room_for_two(tmp_path):
    """A second process has opened the lock file before the first ends, a third comes after: one of them at most may run."""
    output = tmp_path / "out.csv"
    first = only_writer(output)
    first.__enter__()
    early = os.open(tmp_path / ".out.csv.lock", os.O_RDWR)
    first.__exit__(None, None, None)
    fcntl.flock(early, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(ValueError, match="out.csv: another process is writing it"), only_writer(output):
        pass
    os.close(early)
    with only_writer(output):
        pass


def test_memory_is_flat_over_100_000_rows(tmp_path, monkeypatch):
    names = [str(i) for i in range(100_000)]
    image = Image.new("RGB", (8, 8))
    levels = []

    def sampled(rows):
        for i, row in enumerate(rows):
            if i % 5000 == 0:
                levels.append(psutil.Process().memory_info().rss)
            yield row

    def score(batch, images):
        return list(sampled({"path": name, "score": 0.0, "label": "good"} for name in batch))

    monkeypatch.setattr("diffad.jobs.predict.write_table", lambda rows, path: write_table(sampled(rows), path))
    make_rows = partial(rows_in_batches, lambda name: image, score, 100, None)
    summary = record_rows(names, make_rows, tmp_path / "out.parquet", {})
    assert summary.images == 100_000 and pq.read_metadata(tmp_path / "out.parquet").num_rows == 100_000
    assert len(levels) == 1000 + 20
    # All rows would be 40 MB; what is allowed is a chunk of the table in the making.
    assert max(levels) - levels[100] < 12e6


DAMAGED_JOURNALS = {
    "rows of another kind": lambda lines: [*lines[:3], b"[1, 2]\n", *lines[4:]],
    "half a row": lambda lines: [*lines[:3], lines[3][:9] + b"\n", *lines[4:]],
    "no text": lambda lines: [*lines[:3], b"\xff\xfe\n", *lines[4:]],
    "nested": lambda lines: [*lines[:3], b"[" * 100_000 + b"\n", *lines[4:]],
    "no first line": lambda lines: [b"results of last week\n"],
    "no line feed": lambda lines: [b"results of last week"],
    "a row twice": lambda lines: [*lines[:3], *lines[2:]],
    "a row less": lambda lines: [*lines[:3], *lines[4:]],
    "too many rows": lambda lines: [*lines, *(json.dumps({"path": str(i)}).encode() + b"\n" for i in range(8, 15))],
    "a score that is a text": lambda lines: [*lines[:2], b'{"path": "1", "score": "high"}\n', *lines[3:]],
    "a number that no column holds": lambda lines: [*lines[:2], b'{"path": "1", "defect_pixels": 1e300}\n', *lines[3:]],
}


@pytest.mark.parametrize("damage", DAMAGED_JOURNALS)
def test_a_damaged_journal_is_named_in_one_line_and_kept(tmp_path, damage):
    journal = tmp_path / "out.csv.journal"
    with pytest.raises(KeyboardInterrupt):
        run(Stub(kill_at="8"), tmp_path / "out.csv", 12)
    content = b"".join(DAMAGED_JOURNALS[damage](journal.read_bytes().splitlines(keepends=True)))
    journal.write_bytes(content)
    with pytest.raises(ValueError, match=r"out\.csv\.journal: .*remove the file to begin anew$") as raised:
        run(Stub(), tmp_path / "out.csv", 12)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    assert journal.read_bytes() == content and not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"run": 3, "table": "x"}', b'{"run": {}}', b"\xff", b"[" * 100_000, b"9" * 5000]
)
def test_a_damaged_record_is_named_in_one_line_and_the_table_kept(tmp_path, content):
    output, record = tmp_path / "out.csv", tmp_path / "out.csv.run.json"
    run(Stub(), output, 12)
    table = output.read_bytes()
    record.write_bytes(content)
    with pytest.raises(ValueError, match=r"out\.csv\.run\.json: is not the record of a run .*name another table$") as raised:
        run(Stub(), output, 12)
    assert "\n" not in str(raised.value) and output.read_bytes() == table


def test_digest_of_files_follows_names_sizes_and_times(tmp_path):
    names = ["a", "b"]
    for name in names:
        (tmp_path / name).write_text("same")
        os.utime(tmp_path / name, ns=(0, 0))
    digest = files_digest(tmp_path, names)
    assert files_digest(tmp_path, names) == digest != files_digest(tmp_path, names[:1])
    os.utime(tmp_path / "a", ns=(0, 1))
    assert files_digest(tmp_path, names) != digest
