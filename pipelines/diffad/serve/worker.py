"""The process that computes, as the server sees it."""

import asyncio
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection

from .computing import Load, compute
from .messages import Job, Loaded, LoadingFailed, Result
from .settings import ServeSettings

# A new interpreter: forking one that runs threads can leave locks held for ever.
CONTEXT = multiprocessing.get_context("spawn")


class WorkerError(Exception):
    """The process ended without an answer; says why as far as that is known."""


class Worker:
    """One process with one model; [`Worker.start`] makes it.

    Args:
        loaded: what the process has said of the model.
    """

    def __init__(self, process: multiprocessing.Process, connection: Connection, loaded: Loaded):
        self.process, self.info, self.batch_size = process, loaded.info, loaded.batch_size
        self._connection = connection
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, load: Load, path: str, settings: ServeSettings) -> "Worker":
        """Starts a process, and waits until it has loaded the model and scored with it.

        Raises:
            WorkerError: if it can't be loaded.
        """
        connection, other_end = CONTEXT.Pipe()
        process = CONTEXT.Process(target=compute, args=(other_end, load, path, settings), daemon=True)
        try:
            await asyncio.to_thread(process.start)
            other_end.close()  # so that its end is seen
            loaded = await asyncio.to_thread(connection.recv)
        except (EOFError, OSError):
            loaded = LoadingFailed(f"{path}: the process that loads it was ended, perhaps for want of memory")
        except asyncio.CancelledError:
            if process.pid is not None:
                process.kill()
            raise
        if isinstance(loaded, LoadingFailed):
            connection.close()
            await asyncio.to_thread(process.join)
            raise WorkerError(loaded.error)
        return cls(process, connection, loaded)

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    async def answer(self, jobs: Sequence[Job], seconds: float) -> list[Result]:
        """Results of jobs of one kind and category, in their order; callers take turns.

        Raises:
            WorkerError: if the process ends, or takes longer and is ended therefore.
        """
        async with self._turn:
            call = asyncio.create_task(asyncio.to_thread(self._exchange, jobs))
            done, _ = await asyncio.wait({call}, timeout=seconds)
            if not done:
                self.process.kill()
            try:
                return await call
            except (EOFError, OSError):
                self.process.kill()
                reason = "was ended" if done else f"took more than {seconds:g} seconds and was ended"
                raise WorkerError(f"the process that computes {reason}") from None

    async def stop(self) -> None:
        """Ends the process once it has answered what it is at."""
        async with self._turn:
            await asyncio.to_thread(self._end)

    def _exchange(self, jobs: Sequence[Job]) -> list[Result]:
        self._connection.send(tuple(jobs))
        return self._connection.recv()

    def _end(self) -> None:
        # It has nothing to put away, and large libraries take seconds to end by themselves
        self.process.kill()
        self.process.join()
        self._connection.close()
