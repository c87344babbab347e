"""Does `diffad predict` stay fast and small over very many images, and lose nothing when it is killed?

    python training/benchmarks/prediction.py --model runs/part --rows 100000

Links a few made-up images until there are as many files as rows, and predicts them twice, in a process with one thread. The
first run is left alone: its speed and resident memory are measured over time. The second is killed (SIGKILL) at random
moments and once more when the table is being written, and started again each time; its table must name every file once and
say what the first one says. Appends one line to training/benchmarks/results/prediction.jsonl. The line kept there is of the
tiny model of tests/tiny_pipeline.py: the smaller the model, the more the program's own time and memory show.

    PYTHONPATH=tests python -c "from tiny_pipeline import save_tiny_model; save_tiny_model('runs/tiny')"
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from diffad import DiffADPipeline
from diffad.jobs.table import read_rows
from diffad_training.benchmarks.records import append_result
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "prediction.jsonl"
FILES_PER_FOLDER = 1000
DIFFAD = [sys.executable, "-m", "diffad.cli"]
POLL_SECONDS = 0.1
# One thread, so that figures of different machines compare.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Level:
    """A moment of a run: seconds since its start, processor time so far, finished rows, resident memory in MiB."""

    seconds: float
    cpu_seconds: float
    rows: int
    resident: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark long prediction runs.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained pipeline")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=50, help="different images among the rows")
    parser.add_argument("--kills", type=int, default=4, help="while rows are being scored")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the images and of the moments to kill at")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder, whole, resumed = (Path(scratch) / name for name in ("images", "whole.jsonl", "resumed.jsonl"))
        link_images(folder, options.rows, options.images, DiffADPipeline.from_pretrained(options.model).image_size, rng)
        command = [*DIFFAD, "predict", folder, "--model", options.model, "--batch-size", options.batch_size, "--output"]
        levels = list(watched(start([*command, whole]), journal_of(whole)))
        kills = killed_and_resumed([*command, resumed], journal_of(resumed), options.rows, options.kills, rng)
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
        differences = compare(list(read_rows(whole)), list(read_rows(resumed)), files)
    record = {
        "rows": options.rows,
        "images": options.images,
        "model": options.model.name,
        "batch_size": options.batch_size,
        "date": datetime.date.today().isoformat(),
        "machine": f"1 thread {platform.machine()}",
        **summarize(levels),
        "killed_after_rows": kills,
        **differences,
    }
    append_result(RESULTS, record)
    print(json.dumps(record, indent=2))
    if any(differences.values()):
        sys.exit("error: rows were lost, doubled or changed")


def link_images(folder: Path, rows: int, images: int, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Writes random images of that size and links them in turn as `<folder>/<thousands>/<number>.png`."""
    originals = folder.with_name("originals")
    originals.mkdir()
    for i in range(images):
        coarse = Image.fromarray(rng.integers(60, 200, size=(4, 4, 3), dtype=np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(originals / f"{i}.png")
    link_files(folder, rows, [originals / f"{i}.png" for i in range(images)])


def link_files(folder: Path, rows: int, files: Sequence[Path]) -> None:
    """Links files in turn as `<folder>/<thousands>/<number>` with their own endings."""
    for i in range(rows):
        file = files[i % len(files)]
        link = folder / f"{i // FILES_PER_FOLDER:03d}" / f"{i:06d}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def journal_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.journal")


def start(command: list) -> subprocess.Popen:
    return subprocess.Popen([str(word) for word in command], env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def watched(process: subprocess.Popen, journal: Path) -> Iterator[Level]:
    """Levels of a running process until it ends.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    started, status = time.perf_counter(), psutil.Process(process.pid)
    lines = LineCount(journal)
    while process.poll() is None:
        try:
            resident, times = status.memory_info().rss / 2**20, status.cpu_times()
        except psutil.NoSuchProcess:  # it ended in between
            break
        rows = max(0, lines.update() - 1)  # the first line names the run
        yield Level(time.perf_counter() - started, times.user + times.system, rows, resident)
        time.sleep(POLL_SECONDS)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)


class LineCount:
    """Number of finished lines of a file that grows, or does not exist yet."""

    def __init__(self, path: Path):
        self.path, self.lines, self.position = path, 0, 0

    def update(self) -> int:
        if self.path.is_file():
            with self.path.open("rb") as file:
                file.seek(self.position)
                new = file.read()
            self.lines += new.count(b"\n")
            self.position += len(new)
        return self.lines


def killed_and_resumed(command: list, journal: Path, rows: int, kills: int, rng: np.random.Generator) -> list[int]:
    """Runs a command to its end, killed on the way; returns after how many finished rows it was.

    Killed soon after each of some random numbers of rows, at whatever it is doing then, and when all rows are there and the
    table is being written.
    """
    waits = [*rng.uniform(0, POLL_SECONDS, kills), 0.0]
    killed = []
    for wait, rows_first in zip(waits, [*sorted(rng.integers(0, rows, kills).tolist()), rows]):
        process = start(command)
        try:
            for level in watched(process, journal):
                if level.rows >= rows_first:
                    time.sleep(wait)
                    break
        finally:
            process.kill()
        if process.wait() == 0:  # it was faster
            return killed
        # The journal goes when the table is complete, a moment before the process ends.
        is_complete = not journal.is_file() and journal.with_suffix("").is_file()
        killed.append(rows if is_complete else max(0, LineCount(journal).update() - 1))
    for _ in watched(start(command), journal):
        pass
    return killed


def compare(whole: list[dict], resumed: list[dict], files: set[str]) -> dict[str, int]:
    """What is wrong with the tables of an uninterrupted and of a resumed run over the same files.

    Returns:
        `lost`: files without a row; `doubled`: rows of a file that has one already; `changed`: rows of the resumed run that
        the other lacks or has otherwise. Scores may differ by rounding, since other images share their batch.
    """
    names = [[row["path"] for row in table] for table in (whole, resumed)]
    expected = {row["path"]: row for row in whole}
    return {
        "lost": sum(len(files.difference(of_table)) for of_table in names),
        "doubled": sum(len(of_table) - len(set(of_table)) for of_table in names),
        "changed": sum(not _says_the_same(row, expected.get(row["path"])) for row in resumed),
    }


def _says_the_same(row: dict, other: dict | None) -> bool:
    if other is None or {**row, "score": None} != {**other, "score": None}:
        return False
    return np.isclose(row["score"], other["score"], rtol=1e-4, atol=1e-4)


def summarize(levels: list[Level]) -> dict:
    """Speed and memory in the first and in the last tenth of the rows, and of the whole run.

    Where other work shares the machine, the rate per second of processor time tells whether a run slows down by itself.
    Writing the table and ending the process come after the last row, and are part of `seconds` and the peak only.
    """
    rows = max(level.rows for level in levels)
    end = next(i for i, level in enumerate(levels) if level.rows == rows)
    scoring = [level for level in levels[: end + 1] if level.rows > 0]
    tenths = {
        "first_tenth": [level for level in scoring if level.rows <= rows / 10],
        "last_tenth": [level for level in scoring if level.rows >= rows * 9 / 10],
    }
    return {
        "seconds": levels[-1].seconds,
        "rows_per_second": {name: _rate(part, "seconds") for name, part in tenths.items()},
        "rows_per_cpu_second": {name: _rate(part, "cpu_seconds") for name, part in tenths.items()},
        "resident_mib": {name: _resident(part) for name, part in tenths.items()},
        "peak_resident_mib": max(level.resident for level in levels),
    }


def _rate(levels: list[Level], clock: str) -> float | None:
    """Rows per unit of a clock, from the first to the last level; None if they were over too soon to be seen twice."""
    if len(levels) < 2 or getattr(levels[-1], clock) == getattr(levels[0], clock):
        return None
    first, last = levels[0], levels[-1]
    return (last.rows - first.rows) / (getattr(last, clock) - getattr(first, clock))


def _resident(levels: list[Level]) -> float | None:
    """Median resident memory in MiB; None if they were over too soon to be seen."""
    return float(np.median([level.resident for level in levels])) if levels else None


if __name__ == "__main__":
    main()
