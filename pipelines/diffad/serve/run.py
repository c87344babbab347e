"""Listens, and serves until the process is told to end."""

import asyncio
import logging
import socket
from contextlib import suppress

import uvicorn

from .app import build_app
from .computing import Load
from .service import Service
from .settings import ServeSettings
from .worker import WorkerError

LOG = logging.getLogger("uvicorn.error")
BACKLOG = 2048
KEEP_ALIVE = 75  # seconds; longer than proxies and clients keep idle connections, so that it is they who close them


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: naming the address, if it can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"{host}:{port}: can't listen there ({error.strerror}); choose another --port or --host") from error


async def serve(load: Load, path: str, settings: ServeSettings, listening: socket.socket, token: str | None) -> None:
    """Loads the model, then serves until SIGTERM or SIGINT; accepted requests are answered before it returns.

    Raises:
        ValueError: if the model can't be loaded, or the file of feedback holds something else.
    """
    service = Service(load, path, settings)
    try:
        await service.open()
    except WorkerError as error:
        raise ValueError(str(error)) from None
    host, port, *_ = listening.getsockname()
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    server = server_of(service, token)
    LOG.info("serving %s (%s) on %s; %s/docs describes requests", path, service.slot.model.worker.info.digest, address, address)
    await server.serve(sockets=[listening])


def server_of(service: Service, token: str | None) -> uvicorn.Server:
    """The HTTP server of an opened service, which closes it in the end."""
    seconds = round(service.settings.batch_seconds) + 1  # longer than an accepted request can take
    app = build_app(service, token)
    config = uvicorn.Config(
        app, access_log=False, server_header=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=seconds
    )
    return uvicorn.Server(config)


def run(load: Load, path: str, settings: ServeSettings, listening: socket.socket, token: str | None) -> None:
    """[`serve`] in an event loop of its own; Ctrl+C is a way to end it."""
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(load, path, settings, listening, token))
