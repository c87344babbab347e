"""The model that serves: restarted if its process ends, and exchanged for another without losing a request."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from .computing import Load
from .metrics import Metrics
from .refusal import Refusal
from .settings import ServeSettings
from .shadow import Comparison, RecentImages
from .worker import Worker, WorkerError

LOG = logging.getLogger("uvicorn.error")
LOOKED_AFTER = 0.2  # seconds from one look at the process to the next
LONGEST_PAUSE = 30.0  # seconds between attempts to start it again


@dataclass(frozen=True)
class ServedModel:
    """A loaded model.

    Args:
        version: counts from 1 on since the server's start; every answer names it.
        path: that it was loaded from.
    """

    version: int
    path: str
    worker: Worker


class ModelSlot:
    """Holds the model that answers; [`ModelSlot.open`] loads the first one.

    Args:
        load: loads a model from its path, in the process that computes.
        path: of the first model.
    """

    def __init__(self, load: Load, path: str, settings: ServeSettings, metrics: Metrics):
        self.load, self.path, self.settings, self.metrics = load, path, settings, metrics
        self.model: ServedModel | None = None
        self._exchange = asyncio.Lock()
        self._loaded = asyncio.Event()

    async def open(self) -> None:
        """Raises WorkerError if the model can't be loaded."""
        self._serve(ServedModel(1, self.path, await Worker.start(self.load, self.path, self.settings)))

    async def close(self) -> None:
        if self.model is not None:
            await self.model.worker.stop()

    @property
    def is_ready(self) -> bool:
        """Whether a request would be computed at once, but for those before it."""
        return self._loaded.is_set() and self.model.worker.is_alive

    async def served(self, seconds: float) -> ServedModel | None:
        """The model that serves; None if there is none within these seconds."""
        try:
            await asyncio.wait_for(self._loaded.wait(), seconds)
        except asyncio.TimeoutError:  # noqa: UP041 - in Python 3.10 it is not the built-in one
            return None
        return self.model

    def lost(self, model: ServedModel) -> None:
        """Takes note that the process of a model has ended: requests wait until there is another."""
        if self.model is model:
            self._loaded.clear()

    async def keep_running(self) -> None:
        """Starts the process anew whenever it ends, until cancelled."""
        while True:
            await asyncio.sleep(LOOKED_AFTER)
            ended = self.model
            if ended.worker.is_alive:
                continue
            self._loaded.clear()
            self.metrics.restarts.inc()
            LOG.error("the process that computes has ended (exit code %s); starting it again", ended.worker.process.exitcode)
            await self._restart(ended)

    async def replace(self, path: str, recent: RecentImages, force: bool) -> Comparison:
        """Loads a model aside, scores with it, compares it on recent images, and lets it serve from the next batch on.

        Args:
            recent: images with the present model's labels.
            force: let it serve whatever the comparison says.

        Raises:
            Refusal: 409 if another exchange is under way, or the labels agree too seldom; 422 if it can't be
                loaded.
        """
        if self._exchange.locked():
            raise Refusal(409, "another model is being loaded; wait for it")
        if not Path(path).is_dir():
            raise Refusal(422, f"{path}: no such folder on the server's machine")
        async with self._exchange:
            try:
                worker = await Worker.start(self.load, path, self.settings)
            except WorkerError as error:
                raise Refusal(422, str(error)) from None
            try:
                comparison = await recent.compare(worker, self.settings, self.model.version)
                if not force:
                    comparison.check(path, self.settings.min_agreement)
            except BaseException:
                await worker.stop()
                raise
            former = self.model
            self._serve(ServedModel(former.version + 1, path, worker))
            self.metrics.swaps.inc()
            LOG.info("model %d serves: %s (%s)", self.model.version, path, worker.info.digest)
            await former.worker.stop()
            return comparison

    def _serve(self, model: ServedModel) -> None:
        self.model = model
        self._loaded.set()

    async def _restart(self, ended: ServedModel) -> None:
        pause = 1.0
        while self.model is ended:
            try:
                worker = await Worker.start(self.load, ended.path, self.settings)
            except WorkerError as error:
                LOG.error("%s; trying again in %g seconds", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if self.model is not ended:  # another one was loaded meanwhile
                await worker.stop()
                return
            # A folder whose content has changed gives another model.
            version = ended.version + (worker.info != ended.worker.info)
            self._serve(ServedModel(version, ended.path, worker))
