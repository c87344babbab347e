"""Kills of the process, a broker and a web server that go away, a full disk: no part is lost, none is doubled."""

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from diffad.jobs.table import read_rows
from diffad.watch.board import Board
from diffad.watch.journal import PartJournal
from diffad.watch.sinks.files import TableFile
from diffad.watch.sinks.mqtt import Mqtt
from diffad.watch.sinks.webhook import Webhook
from line_servers import Hook, broker, free_port, hook, subscriber
from small_disks import fill_up, small_disk
from watch_stub import ListSink, eventually, folder_inspection, grey, running, save_grey

SCRIPT = Path(__file__).with_name("killed_watch.py")


def write_images(folder: Path, count: int, pause: float) -> None:
    """As a camera does, in two halves; every third image is defective."""
    for number in range(count):
        body = io.BytesIO()
        grey(220 if number % 3 == 0 else 20).resize((64, 64)).save(body, ("PNG", "JPEG")[number % 2])
        data = body.getvalue()
        cut = 1 + number * 37 % (len(data) - 1)
        with (folder / f"{number:06d}.{'png' if number % 2 == 0 else 'jpg'}").open("wb", buffering=0) as file:
            file.write(data[:cut])
            time.sleep(pause * (number % 4) / 2)  # also longer than a file must stay unchanged
            file.write(data[cut:])
        time.sleep(pause)


@contextmanager
def started(*arguments):
    """A process of the script, ended at the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def errors_of(process: subprocess.Popen) -> str:
    process.kill()
    return process.communicate()[1]


def killed_runs(
    tmp_path: Path, images: int, kills: int, alive: tuple[float, float], pause: float, broker_stops: int
) -> Counter:
    """Kills watches and restarts the broker while a camera writes; how often results came twice where that is allowed."""
    folder, journal = tmp_path / "camera", tmp_path / "journal"
    folder.mkdir()
    tables = [tmp_path / "results.csv", tmp_path / "results.jsonl"]
    numbers = range(1, images + 1)
    with broker(tmp_path) as server, hook() as web, subscriber(server.port) as messages:
        sinks = (*tables, server.address, web.address)
        camera = threading.Thread(target=write_images, args=(folder, images, pause), daemon=True)
        with started(folder, journal, kills, *alive, *sinks) as watch:
            assert watch.stdout.readline() == "ready\n", errors_of(watch)
            camera.start()
            draw = random.Random(1)
            for _ in range(broker_stops):
                seen = len(messages)
                eventually(lambda seen=seen: len(messages) > seen + 10 or watch.poll() is not None, 300)
                assert watch.poll() is None, errors_of(watch)
                server.stop()
                time.sleep(draw.uniform(0, 0.5))
                server.start()
            assert watch.stdout.readline() == "killed\n", errors_of(watch)
            camera.join()

            def all_there() -> bool:
                assert watch.poll() is None, errors_of(watch)
                time.sleep(0.1)
                got = {body["number"] for topic, body, _ in messages if topic == "result"}
                return got.issuperset(numbers) and {body["number"] for _, body in web.requests}.issuperset(numbers)

            eventually(all_there, 300)
            watch.send_signal(signal.SIGTERM)
            assert watch.wait(60) == 0, errors_of(watch)
        published = [body for topic, body, _ in messages if topic == "result"]
        posted = [body for _, body in web.requests]
    files = {path.name for path in folder.iterdir()}
    assert len(files) == images
    for table in tables:  # exactly once, in their order
        rows = list(read_rows(table))
        assert [int(row["number"]) for row in rows] == list(numbers)
        assert sorted(row["path"] for row in rows) == sorted(files)
        assert not any(row["error"] for row in rows)
        for row in rows:  # the verdict is that of the image of that name: nothing was mixed up
            assert row["label"] == ("defective" if int(row["path"][:-4]) % 3 == 0 else "good")
    by_id = {result["id"]: result for result in read_rows(tables[1])}
    for received in (published, posted):  # at least once, and what comes twice is the same
        assert {body["id"] for body in received} == set(by_id)
        assert all(body == by_id[body["id"]] for body in received)
    return Counter(webhook_repeated=len(posted) - images, mqtt_repeated=len(published) - images)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_watch_loses_and_doubles_no_part(tmp_path):
    killed_runs(tmp_path, images=30, kills=4, alive=(0.3, 0.8), pause=0.06, broker_stops=1)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_many_kills_lose_and_double_no_part(tmp_path):
    """The long form of the above; prints how often results came twice where that is allowed."""
    print(killed_runs(tmp_path, images=3000, kills=60, alive=(0.2, 3), pause=0.03, broker_stops=15))


def test_a_broker_that_was_away_gets_everything_after_its_return(tmp_path):
    folder = tmp_path / "camera"
    save_grey(folder, [20] * 3)
    with broker(tmp_path) as server, PartJournal(tmp_path / "journal", str(folder.resolve())) as journal:
        lines, sink = [], ListSink()
        sinks = [Mqtt(server.address), sink]
        inspection = folder_inspection(folder, journal, sinks, once=False, board=Board(0, lines.append))
        with running(inspection), subscriber(server.port) as messages:
            eventually(lambda: len(sink.results) == 3)
            server.stop()
            save_grey(folder, [20] * 5, first=3)
            eventually(lambda: len(sink.results) == 8 and any("failed" in line for line in lines))
            eventually(lambda: sink.situations[-1].causes.name == "SINK")
            server.start()
            eventually(lambda: lines[-1].endswith("works again"))
            eventually(lambda: {body["number"] for topic, body, _ in messages if topic == "result"} >= set(range(4, 9)))


def test_a_webhook_that_is_away_gets_everything_after_its_return(tmp_path):
    folder, port = tmp_path / "camera", free_port()
    save_grey(folder, [20] * 5)
    with PartJournal(tmp_path / "journal", str(folder.resolve())) as journal:
        lines: list[str] = []
        sinks = [Webhook(f"http://127.0.0.1:{port}/parts")]
        with running(folder_inspection(folder, journal, sinks, once=False, board=Board(0, lines.append))):
            eventually(lambda: lines and journal.next_number == 6)
            web = Hook(port)
            web.status = 503
            eventually(lambda: web.requests and "answers 503" in lines[-1])
            web.requests.clear()
            web.status = 204
            eventually(lambda: len(web.requests) == 5)
            web.close()
    assert [body["number"] for _, body in web.requests] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("journal_is_there", [False, True])
def test_a_full_disk_delays_results_and_loses_none(tmp_path, journal_is_there):
    folder = tmp_path / "camera"
    save_grey(folder, [20] * 30)
    with small_disk(tmp_path / "disk", "8m") as disk:
        place = disk if journal_is_there else tmp_path
        filler, table = disk / "filler", disk / "results.csv"
        with PartJournal(place / "journal", str(folder.resolve())) as journal:
            lines: list[str] = []
            sinks = [TableFile(table, journal.identity)]
            inspection = folder_inspection(folder, journal, sinks, once=False, board=Board(0, lines.append))
            fill_up(filler)
            with running(inspection):
                cause = "journal failed" if journal_is_there else f"sink {table} failed"
                eventually(lambda: any(line.startswith(cause) for line in lines))
                if not journal_is_there:
                    eventually(lambda: journal.next_number == 31)  # judged all the same
                filler.unlink()
                eventually(lambda: table.exists() and table.read_bytes().count(b"\n") == 31)
        rows = list(read_rows(table))
    assert [int(row["number"]) for row in rows] == list(range(1, 31))
    assert len({row["path"] for row in rows}) == 30
