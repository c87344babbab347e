"""What stands at a line, on loopback: an MQTT broker (mosquitto), a Modbus/TCP device (pymodbus's server), a web server."""

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from paho.mqtt.client import CallbackAPIVersion, Client
from pymodbus.client import ModbusTcpClient
from pymodbus.datastore import ModbusDeviceContext, ModbusServerContext, ModbusSparseDataBlock
from pymodbus.server import ModbusTcpServer

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int) -> None:
    stop = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < stop, f"nothing listens on {port}"
            time.sleep(0.02)


class Broker:
    """A broker that can be stopped and started again.

    It keeps what it has acknowledged for subscribers that are away. One that were killed (SIGKILL) would lose some of that.
    """

    def __init__(self, folder: Path, password: str | None = None):
        if MOSQUITTO is None:
            pytest.skip("needs the MQTT broker mosquitto: apt-get install mosquitto")
        self.port = free_port()
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if password else 'true'}",
            "max_queued_messages 0",
            "persistence true",
            f"persistence_location {folder}/",
        ]
        if password:
            subprocess.run(
                [str(Path(MOSQUITTO).parent.parent / "bin/mosquitto_passwd"), "-b", "-c", folder / "users", "line", password],
                check=True,
            )
            (folder / "users").chmod(0o644)
            lines.append(f"password_file {folder / 'users'}")
        if folder.owner() == "root":  # else it could not read the folder
            lines.append("user root")
        self.configuration = folder / "mosquitto.conf"
        self.configuration.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}/line1/camera2"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", self.configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def kill(self) -> None:
        """Ends it as a loss of power would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def broker(folder: Path, password: str | None = None):
    made = Broker(folder, password)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def subscriber(port: int, topic: str = "line1/camera2/#"):
    """Messages as (last part of the topic, parsed payload, retained), as they come."""
    messages: list[tuple[str, dict, bool]] = []
    subscribed = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, uuid.uuid4().hex, clean_session=False)
    client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _, __, message: messages.append(
        (message.topic.rpartition("/")[2], json.loads(message.payload), message.retain)
    )
    client.reconnect_delay_set(0.02, 0.02)
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert subscribed.wait(10)
    try:
        yield messages
    finally:
        client.disconnect()
        client.loop_stop()


class Device:
    """A Modbus/TCP server of 200 holding registers as unit 1, and a client of its own that reads them."""

    def __init__(self):
        self.port = free_port()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        # The server's addresses count from 1 within its block; a sequential one would grow in older versions.
        unit = ModbusDeviceContext(hr=ModbusSparseDataBlock(dict.fromkeys(range(1, 201), 0), mutable=False))
        context = ModbusServerContext(devices={1: unit}, single=False)
        started = threading.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._server = ModbusTcpServer(context, address=("127.0.0.1", self.port))
            serving = asyncio.ensure_future(self._server.serve_forever())
            started.set()
            await asyncio.wait([serving])

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        assert started.wait(10)
        wait_for_port(self.port)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop)
        self._thread.join(10)

    def read(self, first: int, count: int) -> list[int]:
        with ModbusTcpClient("127.0.0.1", port=self.port) as client:
            return client.read_holding_registers(first, count=count, device_id=1).registers


@contextmanager
def device():
    made = Device()
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Hook:
    """A web server that takes results; `status` is what it answers."""

    def __init__(self, port: int = 0):
        self.requests: list[tuple[dict, dict]] = []
        self.status = 204
        hook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.requests.append((dict(self.headers), body))
                self.send_response(hook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}/parts"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def hook():
    made = Hook()
    try:
        yield made
    finally:
        made.close()
