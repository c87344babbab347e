"""A server and a watch at one line while everything fails: no answer and no result is lost, doubled or mixed."""

import asyncio
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from diffad.jobs.table import read_rows
from diffad.monitoring.feedback_list import read_feedback
from diffad.serve.settings import ServeSettings
from diffad.watch.backoff import Backoff
from diffad.watch.drift import DriftSettings, JournaledMonitor
from diffad.watch.inspection import Inspection
from diffad.watch.journal import PartJournal
from diffad.watch.judge import Judge
from diffad.watch.sinks.files import TableFile
from diffad.watch.sinks.mqtt import Mqtt
from diffad.watch.sources.folder import FolderSource
from line_servers import Broker, broker, subscriber
from running import Running, png, running
from small_disks import fill_up, small_disk
from stub_model import load_stub, save_stub

CLIENTS = 50
PATIENCE = 3000  # times that one request is sent until it is given up
TO_WATCH = 10  # one in so many judged parts goes on to the watch
TO_FEEDBACK = 15  # of one in so many the verdict is called wrong
LEVELS = range(40, 120)


class Clients:
    """What 50 clients send and are answered for some seconds."""

    def __init__(self, server: Running, camera: Path):
        self.server, self.camera = server, camera
        self.counts: Counter = Counter()
        self.scores: dict[str, float] = {}
        self.seconds: list[float] = []  # from the first attempt to the answer
        self.said: set[str] = set()
        self.pictures = {level: png(level) for level in LEVELS}

    async def run(self, seconds: float, disturbers: list) -> None:
        limits, end = httpx.Limits(max_connections=None), time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=self.server.address, timeout=120, limits=limits, trust_env=False) as http:
            disturbing = [asyncio.create_task(asyncio.to_thread(disturber)) for disturber in disturbers]
            clients = [asyncio.create_task(self.client(http, end, disturbing)) for _ in range(CLIENTS)]
            await asyncio.gather(*clients, *disturbing)

    async def client(self, http: httpx.AsyncClient, end: float, disturbing: list[asyncio.Task]) -> None:
        while time.monotonic() < end or not all(task.done() for task in disturbing):
            number = self.counts["images"]
            self.counts["images"] += 1
            name, level, start = f"{number:07d}.png", LEVELS[number % len(LEVELS)], time.monotonic()
            answer = await self.until_taken(http, f"/predict?name={name}", content=self.pictures[level])
            self.seconds.append(time.monotonic() - start)
            (row,) = answer.json()["images"]
            assert (row["name"], row["score"]) == (name, level)
            assert name not in self.scores
            self.scores[name] = row["score"]
            if number % TO_WATCH == 0:
                (self.camera / name).write_bytes(self.pictures[level])
            if number % TO_FEEDBACK == 0:
                # Of each file the latest word counts: another picture for each word
                said = {"name": name, "digest": f"{number:064x}", "verdict": "good", "correct_verdict": "defective"}
                await self.until_taken(http, "/feedback", json=said)
                self.said.add(name)

    async def until_taken(self, http: httpx.AsyncClient, path: str, **body) -> httpx.Response:
        for _ in range(PATIENCE):
            answer = await http.post(path, **body)
            if answer.is_success:
                return answer
            self.counts[f"{answer.status_code} {path.partition('?')[0]}"] += 1
            assert answer.json()["retryable"], answer.text
            await asyncio.sleep(random.uniform(0, 0.1))
        raise AssertionError(f"{path} is never taken")


@contextmanager
def watching(camera: Path, folder: Path, disk: Path, address: str, model: str) -> Iterator[PartJournal]:
    """A watch of a folder, in a thread, into a table on the disk and to the broker."""
    with PartJournal(folder / "journal", str(camera)) as journal:
        sinks = [TableFile(disk / "results.csv", journal.identity), Mqtt(address)]
        judge = Judge(lambda: load_stub(model))
        drift = JournaledMonitor(journal, judge.pipe, DriftSettings())
        source = FolderSource(camera, journal.knows, settle=0.03)
        inspection = Inspection(source, judge, journal, sinks, drift, backoff=lambda: Backoff(0.01, 0.2), patience=60)
        thread = threading.Thread(target=inspection.run, daemon=True)
        thread.start()
        try:
            yield journal
        finally:
            inspection.stop()
            thread.join(120)
            assert not thread.is_alive()


def faults_together(tmp_path: Path, seconds: float, worker_kills: int, broker_kills: int, fillings: int) -> dict:
    """Checks every answer and result; counts, and quantiles of the seconds that answers took."""
    camera, model = tmp_path / "camera", save_stub(tmp_path / "model")
    camera.mkdir()

    def kill_workers(server: Running) -> None:
        for _ in range(worker_kills):
            time.sleep(0.6 * seconds / worker_kills)
            while not server.service.slot.is_ready:
                time.sleep(0.02)
            os.kill(server.service.slot.model.worker.process.pid, signal.SIGKILL)

    def kill_broker(at: Broker) -> None:
        for _ in range(broker_kills):
            time.sleep(0.7 * seconds / broker_kills)
            at.kill()
            time.sleep(random.uniform(0, 0.5))
            at.start()

    def fill_disk(disk: Path) -> None:
        for _ in range(fillings):
            time.sleep(0.4 * seconds / fillings)
            fill_up(disk / "filler")
            time.sleep(0.3 * seconds / fillings)
            (disk / "filler").unlink()

    with small_disk(tmp_path / "disk", "64m") as disk, broker(tmp_path) as at, subscriber(at.port) as messages:
        settings = ServeSettings(feedback=disk / "feedback.jsonl", monitor_state=disk / "monitor.json")
        with watching(camera, tmp_path, disk, at.address, model) as journal, running(model, settings) as server:
            clients = Clients(server, camera)
            disturbers = [lambda: kill_workers(server), lambda: kill_broker(at), lambda: fill_disk(disk)]
            asyncio.run(clients.run(seconds, disturbers))
            answers, watched = len(clients.scores), len(list(camera.iterdir()))
            end = time.monotonic() + 120
            while journal.next_number <= watched or lines_of(disk / "results.csv") <= watched:
                assert time.monotonic() < end, (journal.next_number, lines_of(disk / "results.csv"), watched)
                time.sleep(0.05)
            # The server has judged what was answered, and nothing twice
            assert server.metric("diffad_images_total", verdict="good") == answers == clients.counts["images"]
            assert server.metric("diffad_worker_restarts_total") == worker_kills
            (monitored,) = server.client.get("/monitor").json()["categories"]
            assert monitored["parts"] == answers
        rows, feedback = list(read_rows(disk / "results.csv")), read_feedback(disk / "feedback.jsonl")
    published = {body["number"]: body for topic, body, _ in messages if topic == "result"}
    assert [int(row["number"]) for row in rows] == list(range(1, watched + 1))
    assert {row["path"] for row in rows} == {path.name for path in camera.iterdir()} and len(rows) == watched
    assert all(float(row["score"]) == clients.scores[row["path"]] for row in rows)
    assert all(
        (body["path"], body["score"]) == (rows[n - 1]["path"], float(rows[n - 1]["score"])) for n, body in published.items()
    )
    assert sorted(record.name for record in feedback.records.values()) == sorted(clients.said)
    p50, p95, p99 = np.quantile(clients.seconds, (0.5, 0.95, 0.99))
    found = {"answers": answers, "watched": watched, "words": len(clients.said), **clients.counts}
    # What a killed broker had acknowledged and not passed on, no sender can know
    return found | {"lost by the broker": watched - len(published), "p50": p50, "p95": p95, "p99": p99}


def lines_of(table: Path) -> int:
    return table.read_bytes().count(b"\n") if table.exists() else 0


def test_everything_fails_at_once(tmp_path):
    assert faults_together(tmp_path, 2.0, 1, 1, 1)["watched"] > 0


@pytest.mark.long
def test_everything_fails_for_ten_minutes(tmp_path):
    found = faults_together(tmp_path, 600.0, 20, 10, 6)
    print(found)
    assert found["503 /predict"] and found["503 /feedback"]
