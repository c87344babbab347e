"""A bounded queue of requests, of which those that wait together are computed together."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .messages import Job, Result
from .metrics import Metrics
from .model_slot import ModelSlot, ServedModel
from .refusal import Refusal
from .settings import ServeSettings
from .worker import WorkerError

LOADING_PATIENCE = 30.0  # seconds that waiting requests wait for a process that is being restarted
FIRST_GUESS = 0.2  # seconds for an image, before any was measured


class Places:
    """Places in the server that one request holds from its arrival to its answer."""

    def __init__(self, batcher: "Batcher"):
        self.batcher, self.count = batcher, 0

    def take(self, count: int) -> None:
        """Takes further places.

        Raises:
            Refusal: 429 if there are not so many.
        """
        batcher = self.batcher
        if batcher.held + count > batcher.settings.capacity:
            raise Refusal(
                429,
                f"{batcher.held} images are waiting or being scored, and at most {batcher.settings.capacity} can be; try later",
                batcher.expected_wait(),
            )
        batcher.held += count
        self.count += count


class Batcher:
    """Requests in the order in which they came, to the model that serves when their turn comes.

    Args:
        slot: of the model.
    """

    def __init__(self, slot: ModelSlot, settings: ServeSettings, metrics: Metrics):
        self.slot, self.settings, self.metrics = slot, settings, metrics
        self.held = 0  # images
        self._waiting: deque[tuple[Job, asyncio.Future]] = deque()
        self._arrived = asyncio.Event()
        self._seconds_per_image = FIRST_GUESS

    @contextmanager
    def places(self) -> Iterator[Places]:
        """One place for a request that has arrived, before its body is read; further ones can be taken."""
        places = Places(self)
        places.take(1)
        try:
            yield places
        finally:
            self.held -= places.count

    def expected_wait(self) -> int:
        """Seconds until what is waiting now is done, rounded up."""
        return max(1, math.ceil(self.held * self._seconds_per_image))

    async def result(self, job: Job) -> tuple[Result, ServedModel | None]:
        """The result of a job, and the model that computed it; None if none did."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Computes what arrives, until it is cancelled."""
        while True:
            await self._arrived.wait()
            served = await self.slot.served(LOADING_PATIENCE)
            group = self._next_group(self.settings.batch_size if served is None else served.worker.batch_size)
            jobs = [job for job, _ in group]
            results = await self._compute(jobs, served)
            for (_, future), result in zip(group, results, strict=True):
                if not future.done():  # the request may have been cancelled
                    future.set_result((result, served))

    async def _compute(self, jobs: list[Job], served: ServedModel | None) -> list[Result]:
        if served is None:
            return [Refusal(503, "no model is loaded at present; try again", 5)] * len(jobs)
        images, start = sum(len(job.images) for job in jobs), time.monotonic()
        try:
            results = await served.worker.answer(jobs, self.settings.batch_seconds)
        except WorkerError as error:
            self.slot.lost(served)
            return [Refusal(503, f"{error} and is restarted; try again", 2)] * len(jobs)
        self.metrics.batch_images.observe(images)
        if not jobs[0].repair:
            self._seconds_per_image += 0.1 * ((time.monotonic() - start) / images - self._seconds_per_image)
        return results

    def _next_group(self, batch_size: int) -> list[tuple[Job, asyncio.Future]]:
        """The first job, and those right behind it that fit into a batch with it."""
        group = [self._waiting.popleft()]
        first = group[0][0]
        images = len(first.images)
        while self._waiting and not first.repair:
            job = self._waiting[0][0]
            images += len(job.images)
            if images > batch_size or job.category != first.category or job.repair:
                break
            group.append(self._waiting.popleft())
        if not self._waiting:
            self._arrived.clear()
        return group
