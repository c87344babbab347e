"""Servers on loopback for tests, and what they are sent."""

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from diffad.serve.run import listen, server_of
from diffad.serve.service import Service
from diffad.serve.settings import ServeSettings
from PIL import Image
from stub_model import SIZE, load_stub

TOKEN = "a-token-of-the-tests"


@dataclass
class Running:
    """A server in a thread of the test's process; its model computes in another process."""

    service: Service
    server: uvicorn.Server
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    address: str

    def metric(self, name: str, **labels: str) -> float | None:
        """Value of a sample as /metrics gives it."""
        self.client.get("/metrics").raise_for_status()
        return self.service.metrics.registry.get_sample_value(name, labels)


DEFAULTS = ServeSettings()


@contextmanager
def running(path, settings: ServeSettings = DEFAULTS, token: str | None = None, load=load_stub) -> Iterator[Running]:
    """Serves a model until the block ends."""
    started, found = threading.Event(), {}

    async def serve() -> None:
        try:
            with listen("127.0.0.1", 0) as listening:
                service = Service(load, str(path), settings)
                await service.open()
                server = server_of(service, token)
                found.update(service=service, server=server, loop=asyncio.get_running_loop(), port=listening.getsockname()[1])
                serving = asyncio.create_task(server.serve(sockets=[listening]))
                while not server.started:
                    await asyncio.sleep(0.01)
                started.set()
                await serving
        finally:
            started.set()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    address = f"http://127.0.0.1:{found['port']}"
    try:
        with httpx.Client(base_url=address, headers=headers, timeout=300, trust_env=False) as client:
            yield Running(found["service"], found["server"], found["loop"], client, address)
    finally:
        found["server"].should_exit = True
        thread.join()


def png(colour: int | tuple[int, int, int], size: tuple[int, int] = SIZE) -> bytes:
    """A PNG file of one grey level or colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (colour,) * 3 if isinstance(colour, int) else colour).save(file, format="PNG")
    return file.getvalue()


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Files of a multipart form, called 0.png, 1.png, ..."""
    return [("images", (f"{i}.png", data)) for i, data in enumerate(images)]
