"""Measures `diffad serve` against the bare runtime on the same core.

    python training/benchmarks/serving.py --model exported --images DATA/grid/test/good

The server computes on one core, and clients ask from another one. Throughput: clients that always wait for an answer, against a
loop that decodes and scores the same files in batches, turn and turn about. Latency: requests at half the bare runtime's rate,
at a fixed takt and at random (Poisson) times, against the bare runtime's latency on one image. Wall times mean little
on a machine that has other things to do; CPU times per image, which are kept too, suffer less from neighbours. Appends a line
to training/benchmarks/results/serving.jsonl and renders model_cards/serving.md (--tables_only does that alone).
"""

import argparse
import datetime
import io
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
from diffad.imaging.reading import IMAGE_SUFFIXES, read_image
from diffad.runtime import Detector
from diffad_training.benchmarks.records import append_result, fill_tables, latest_results
from diffad_training.benchmarks.speed_timing import machine

ROOT = Path(__file__).parents[2]
CARD = ROOT / "model_cards/serving.md"
RESULTS = Path(__file__).parent / "results/serving.jsonl"
IDENTITY = ("model", "command")
LOAD = 0.5  # of the bare runtime's rate, for latencies


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark diffad serve.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, help="folder that diffad export wrote")
    parser.add_argument("--images", type=Path, help="folder of images that are sent")
    parser.add_argument("--core", type=int, default=0, help="on which the server computes")
    parser.add_argument("--client_core", type=int, default=1, help="from which it is asked")
    parser.add_argument("--rounds", type=int, default=5, help="of throughput, of which the median is taken")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each contender in a round")
    parser.add_argument("--requests", type=int, default=300, help="for latencies, at each kind of arrivals")
    parser.add_argument("--batch_size", type=int, default=8, help="images that are scored together")
    parser.add_argument("--seed", type=int, default=0, help="of random arrivals")
    parser.add_argument("--tables_only", action="store_true", help="render the card from the kept results")
    options = parser.parse_args(arguments)
    if not options.tables_only:
        if options.model is None or options.images is None:
            parser.error("give --model and --images, or --tables_only")
        append_result(RESULTS, run(options))
    update_tables(CARD, RESULTS)


def run(options: argparse.Namespace) -> dict:
    """One line of results; times in seconds, rates in images a second."""
    paths = sorted(path for path in options.images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)[:64]
    images = [path.read_bytes() for path in paths]
    os.sched_setaffinity(0, {options.core})
    with served(options.model, options.batch_size) as (port, pids):
        detector = Detector(options.model, threads=1)
        bare: list[tuple[float, float]] = []
        with_http: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            os.sched_setaffinity(0, {options.core})
            bare.append(max(bare_rate(detector, images, size, options.seconds) for size in (1, options.batch_size)))
            os.sched_setaffinity(0, {options.client_core})
            with_http.append(served_rate(port, pids, images, 2 * options.batch_size, options.seconds))
        os.sched_setaffinity(0, {options.core})
        alone = [timed(detector, [image]) for image in (images * options.requests)[: options.requests]]
        os.sched_setaffinity(0, {options.client_core})
        interval = float(np.median(alone)) / LOAD
        gaps = {
            "takt": np.full(options.requests, interval),
            "Poisson": np.random.default_rng(options.seed).exponential(interval, options.requests),
        }
        latencies = {name: quantiles(arrivals(port, images, np.cumsum(gap))) for name, gap in gaps.items()}
    return {
        "model": options.model.name,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "command": command(options),
        "load_average": os.getloadavg()[0],
        "bare": bare,
        "served": with_http,
        "bare_latency": quantiles(alone),
        "latency": latencies,
    }


def timed(detector: Detector, images: Sequence[bytes]) -> float:
    """Seconds to decode and score files together."""
    start = time.perf_counter()
    detector([read_image(io.BytesIO(image), "image") for image in images], len(images))
    return time.perf_counter() - start


def bare_rate(detector: Detector, images: Sequence[bytes], batch_size: int, seconds: float) -> tuple[float, float]:
    """Images per second of wall time and of CPU time, decoded and scored in batches."""
    start, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        timed(detector, [images[(done + i) % len(images)] for i in range(batch_size)])
        done += batch_size
    return done / (time.perf_counter() - start), done / (time.process_time() - cpu)


@contextmanager
def served(model: Path, batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """A server on this process's cores: its port, and the ids of its processes."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    command = [sys.executable, "-m", "diffad.cli", "serve", str(model), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen([*command, "--batch-size", str(batch_size), "--queue", "256"])
    try:
        while ask(port, "GET", "/ready") != 200:
            if process.poll() is not None:
                raise RuntimeError(f"the server has ended: {shlex.join(command)}")
            time.sleep(0.2)
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        yield port, [process.pid, *(int(child) for task in tasks for child in task.read_text().split())]
    finally:
        process.terminate()
        process.wait()


def ask(port: int, method: str, path: str, body: bytes | None = None, connection: HTTPConnection | None = None) -> int:
    """Status of an answer; 0 if nobody listens."""
    connection = connection or HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except ConnectionRefusedError:
        return 0


def cpu_seconds(pids: Sequence[int]) -> float:
    """That processes have taken so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return ticks / os.sysconf("SC_CLK_TCK")


def served_rate(port: int, pids: Sequence[int], images: Sequence[bytes], clients: int, seconds: float) -> tuple[float, float]:
    """Answers per second of wall time and of the server's CPU time, to clients that each send as soon as they are answered."""
    stop, counts = threading.Event(), [0] * clients

    def client(index: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        while not stop.is_set():
            if ask(port, "POST", "/predict", images[(index + counts[index]) % len(images)], connection) != 200:
                raise RuntimeError("the server has refused an image")
            counts[index] += 1

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(min(1.0, seconds))  # until there are full batches
    start, cpu, before = time.perf_counter(), cpu_seconds(pids), sum(counts)
    time.sleep(seconds)
    done, wall, cpu = sum(counts) - before, time.perf_counter() - start, cpu_seconds(pids) - cpu
    stop.set()
    for thread in threads:
        thread.join()
    return done / wall, done / cpu


def arrivals(port: int, images: Sequence[bytes], times: np.ndarray) -> list[float]:
    """Seconds from the time a request was due to its answer, for requests due at given seconds from now on."""
    latencies = [0.0] * len(times)
    start = time.perf_counter() + 0.5

    def send(index: int) -> None:
        due = start + times[index]
        time.sleep(max(0.0, due - time.perf_counter()))
        if ask(port, "POST", "/predict", images[index % len(images)]) != 200:
            raise RuntimeError("the server has refused an image")
        latencies[index] = time.perf_counter() - due

    threads = [threading.Thread(target=send, args=(index,)) for index in range(len(times))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": float(np.percentile(seconds, percent)) for percent in (50, 95, 99)}


def update_tables(card: Path, results: Path) -> bool:
    """Fills the card's tables with the newest results, and says whether it changed."""
    kept = latest_results(results, IDENTITY)
    return fill_tables(card, "serving", lambda name: {"throughput": _throughput, "latency": _latencies}[name](kept))


def _throughput(rows: list[dict]) -> str:
    names = ("model", "load average", "bare runtime, images/s", "served, images/s", "ratio", "ratio of CPU time per image")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        bare, with_http = np.array(row["bare"]), np.array(row["served"])
        ratios = np.median(with_http / bare, axis=0)
        rates = f"{np.median(bare[:, 0]):.1f} | {np.median(with_http[:, 0]):.1f}"
        lines.append(f"| {row['model']} | {row['load_average']:.1f} | {rates} | {ratios[0]:.0%} | {ratios[1]:.0%} |")
    return "\n".join(lines) + "\n"


def _latencies(rows: list[dict]) -> str:
    names = ("model", "arrivals", "p50, ms", "p95, ms", "p99, ms", "p99 / bare median")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        median = row["bare_latency"]["p50"]
        for name, of_kind in {"bare, one after the other": row["bare_latency"], **row["latency"]}.items():
            cells = " | ".join(f"{1e3 * of_kind[f'p{percent}']:.0f}" for percent in (50, 95, 99))
            lines.append(f"| {row['model']} | {name} | {cells} | {of_kind['p99'] / median:.1f} |")
    return "\n".join(lines) + "\n"


def command(options: argparse.Namespace) -> str:
    """The command that repeats a run."""
    words = ["--model", options.model.name, "--images", f"DATA_ROOT/{'/'.join(options.images.parts[-3:])}"]
    for name in ("core", "client_core", "rounds", "seconds", "requests", "batch_size", "seed"):
        words += [f"--{name}", f"{getattr(options, name):g}"]
    return f"python training/benchmarks/serving.py {shlex.join(words)}"


if __name__ == "__main__":
    main()
