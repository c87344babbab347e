"""Does prediction on Ray scale, and lose nothing when workers are killed?

    python training/benchmarks/scaling.py --model exported --images DATA_ROOT/grid/test/good --workers 1 2
    python training/benchmarks/scaling.py --model tiny-exported --kills 5 --rows 100000

Each worker is a Ray node of one CPU on a core of its own, on this machine. The first command times `diffad predict` on Ray with
each number of workers, on links to the images of a folder: images per second from the first row to the last, without the start
of Ray, and the CPU time that the driver takes for a row. The second one compares the table of a run in which workers are killed
(SIGKILL) at random moments with that of a single process, row for row; without --images it links a few made-up ones. Appends a
line to training/benchmarks/results/scaling.jsonl and renders model_cards/scaling.md (--tables_only does that alone).
"""

import argparse
import datetime
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from diffad.data import image_files
from diffad.runtime.description import DetectorDescription
from diffad_training.benchmarks.prediction import DIFFAD, Level, journal_of, link_files, link_images, start, watched
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results
from diffad_training.benchmarks.speed_timing import machine

CARD = Path(__file__).parents[2] / "model_cards/scaling.md"
RESULTS = Path(__file__).parent / "results/scaling.jsonl"
IDENTITY = ("model", "kind")
WANTED = 100_000_000 / 86_400  # images per second that make 100 million a day
FLEETS = (8, 64)
UNKNOWN = "–"  # in place of a ratio to one worker that was not timed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark prediction on Ray.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, help="folder that diffad export wrote")
    parser.add_argument("--images", type=Path, help="folder of images that are linked; without it made-up ones")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="numbers of workers; with --kills the first")
    parser.add_argument("--cores", type=int, nargs="+", default=sorted(os.sched_getaffinity(0)), help="one for each worker")
    parser.add_argument("--kills", type=int, default=0, help="of workers, while rows are being scored")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of made-up images and of the moments to kill at")
    parser.add_argument("--tables_only", action="store_true", help="render the card from the kept results")
    options = parser.parse_args(arguments)
    if not options.tables_only:
        if options.model is None:
            parser.error("give --model, or --tables_only")
        record = run(options)
        append_result(RESULTS, record)
        if record.get("differing_rows"):
            sys.exit("error: rows were lost, doubled or changed")
    update_tables(CARD, RESULTS)


def run(options: argparse.Namespace) -> dict:
    """One line of results."""
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        if options.images is None:
            link_images(folder, options.rows, 50, DetectorDescription.read(options.model).image_size, rng)
        else:
            link_files(folder, options.rows, image_files(options.images))
        command = [*DIFFAD, "predict", folder, "--model", options.model, "--batch-size", options.batch_size]
        measured = killed if options.kills else timed
        found = measured(options, command, Path(scratch), rng)
    about = {"model": options.model.name, "kind": measured.__name__, "rows": options.rows, "batch_size": options.batch_size}
    return {**about, "date": datetime.date.today().isoformat(), "machine": machine(), "load": os.getloadavg()[0], **found}


def timed(options: argparse.Namespace, command: list, scratch: Path, rng: np.random.Generator) -> dict:
    """Rates of each number of workers."""
    found = {}
    for workers in options.workers:
        output = scratch / f"{workers}.parquet"
        with nodes(options.cores[:workers]) as address:
            levels = list(watched(start([*command, *on_ray(address, workers), output]), journal_of(output)))
        found[str(workers)] = rates(levels)
    return {"workers": found}


def killed(options: argparse.Namespace, command: list, scratch: Path, rng: np.random.Generator) -> dict:
    """Kills of workers, and how many rows differ from those of a single process."""
    whole, output = scratch / "whole.parquet", scratch / "killed.parquet"
    for _ in watched(start([*command, "--output", whole]), journal_of(whole)):
        pass
    wanted, after = sorted(rng.integers(0, options.rows * 9 // 10, options.kills).tolist()), []
    workers = options.workers[0]
    with nodes(options.cores[:workers]) as address:
        for level in watched(start([*command, *on_ray(address, workers), output]), journal_of(output)):
            while len(after) < options.kills and level.rows >= wanted[len(after)] and (pids := worker_pids()):
                os.kill(int(rng.choice(pids)), signal.SIGKILL)
                after.append(level.rows)
                time.sleep(0.5)  # until it is seen to be gone
    return {"killed_after_rows": after, "differing_rows": differing_rows(whole, output)}


def on_ray(address: str, workers: int) -> list:
    return ["--engine", "ray", "--address", address, "--workers", workers, "--output"]


@contextmanager
def nodes(cores: Sequence[int]) -> Iterator[str]:
    """A cluster with a node of one CPU on each of some cores; gives its address."""
    from ray.cluster_utils import Cluster

    own = os.sched_getaffinity(0)
    cluster = Cluster()
    try:
        for core in cores:
            os.sched_setaffinity(0, {core})  # what is started inherits it
            cluster.add_node(num_cpus=1, include_dashboard=False)
        os.sched_setaffinity(0, own)
        yield cluster.address
    finally:
        os.sched_setaffinity(0, own)
        cluster.shutdown()


def worker_pids() -> list[int]:
    """Of Ray's processes that work for a job, of nodes that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:  # it ended in between
            pass
    return found


def rates(levels: Sequence[Level]) -> dict:
    """Images per second, and rows per second of the driver's CPU time, from the first rows to the last."""
    scoring = [level for level in levels if level.rows > 0]
    last = next(level for level in scoring if level.rows == scoring[-1].rows)
    rows = last.rows - scoring[0].rows
    seconds, cpu = last.seconds - scoring[0].seconds, last.cpu_seconds - scoring[0].cpu_seconds
    if rows <= 0 or cpu <= 0:
        raise ValueError("the run was over too soon to be timed: give it more --rows")
    return {"per_second": rows / seconds, "per_driver_cpu_second": rows / cpu}


def differing_rows(first: Path, second: Path) -> int:
    """Number of rows, by their place, that two tables don't have in common."""
    tables = [pq.read_table(path) for path in (first, second)]
    if tables[0].equals(tables[1]):
        return 0
    rows = [table.to_pylist() for table in tables]
    return sum(a != b for a, b in zip(*rows)) + abs(len(rows[0]) - len(rows[1]))


def extrapolated(one: float, efficiency: float, driver: float) -> list[tuple[str, float, int]]:
    """What fleets of workers reach, by min(workers * one * efficiency, runs * driver).

    Args:
        one: images per second of one worker.
        efficiency: of two workers, images per second of both over twice those of one.
        driver: rows per second that one driver, a run, can take.

    Returns:
        Of each fleet its description, images per second, and number of runs side by side; the last is of 100 million a day.
    """
    fleets = {f"{workers} workers": workers * one * efficiency for workers in FLEETS}
    needed = math.ceil(WANTED / (one * efficiency))
    fleets[f"{needed} workers, for 100 million images a day"] = needed * one * efficiency
    return [(name, rate, math.ceil(rate / driver)) for name, rate in fleets.items()]


def update_tables(card: Path, results: Path) -> bool:
    """Fills the card's tables with the newest results, and says whether it changed."""
    kept = latest_results(results, IDENTITY)
    of_kind = {kind: [row for row in kept if row["kind"] == kind] for kind in ("timed", "killed")}
    tables = {"workers": (_workers, "timed"), "fleets": (_fleets, "timed"), "kills": (_kills, "killed")}
    return fill_tables(card, "scaling", lambda name: tables[name][0](of_kind[tables[name][1]]))


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows]) + "\n" if rows else "Not measured yet.\n"


def _workers(results: list[dict]) -> str:
    rows = [
        f"| {row['model']} | {workers} | {rate['per_second']:.1f} | "
        f"{f'{_over_one(row, workers):.2f}' if '1' in row['workers'] else UNKNOWN} | "
        f"{rate['per_driver_cpu_second']:,.0f} | {row['load']:.1f} |"
        for row in results
        for workers, rate in row["workers"].items()
    ]
    return _table(("model", "workers", "images/s", "times one", "rows per CPU second of the driver", "load average"), rows)


def _over_one(row: dict, workers: str) -> float:
    return row["workers"][workers]["per_second"] / row["workers"]["1"]["per_second"]


def _fleets(results: list[dict]) -> str:
    rows = [
        f"| {row['model']} | {name} | {rate:,.0f} | {runs} |"
        for row in results
        if {"1", "2"} <= row["workers"].keys()
        for name, rate, runs in extrapolated(
            row["workers"]["1"]["per_second"], _over_one(row, "2") / 2, row["workers"]["2"]["per_driver_cpu_second"]
        )
    ]
    return _table(("model", "fleet (extrapolated)", "images/s", "runs side by side"), rows)


def _kills(results: list[dict]) -> str:
    rows = [
        f"| {row['model']} | {row['rows']:,} | {len(row['killed_after_rows'])} | "
        f"{', '.join(f'{rows:,}' for rows in row['killed_after_rows'])} | {row['differing_rows']} |"
        for row in results
    ]
    return _table(("model", "images", "workers killed", "after rows", "rows that differ"), rows)


if __name__ == "__main__":
    main()
