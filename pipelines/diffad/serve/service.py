"""What a server does, apart from HTTP: judge, repair, exchange models, take feedback, watch production."""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import Any

from ..monitoring.feedback import FeedbackRecord, append_feedback
from ..monitoring.feedback_list import FeedbackList, read_feedback_so_far
from .batcher import Batcher
from .computing import Load
from .drift import CategoryMonitors
from .messages import Job
from .metrics import Metrics
from .model_slot import ModelSlot, ServedModel
from .refusal import Refusal
from .saved_states import SavedStates
from .settings import ServeSettings
from .shadow import Comparison, RecentImage, RecentImages

LOG = logging.getLogger("uvicorn.error")
SAVED_EVERY = 10.0  # seconds


class Service:
    """A model with its queue, monitor and metrics; [`Service.open`] loads it.

    Args:
        load: loads a model from its path, in the process that computes; a function that can be pickled.
        path: of the first model.

    Raises:
        ValueError: if the file of feedback holds something else.
        OSError: if it, or that of the monitor's state, can't be read.
    """

    def __init__(self, load: Load, path: str, settings: ServeSettings):
        self.settings, self.metrics, self.recent = settings, Metrics(), RecentImages()
        self.slot = ModelSlot(load, path, settings, self.metrics)
        self.batcher = Batcher(self.slot, settings, self.metrics)
        self.states = SavedStates(settings.monitor_state)
        self.feedback = FeedbackList() if settings.feedback is None else read_feedback_so_far(settings.feedback)
        self.drift: CategoryMonitors | None = None
        self._drift_version = 0
        self._tasks: list[asyncio.Task] = []
        self._looks_closer = False
        self.metrics.capacity.set(settings.capacity)

    async def open(self) -> None:
        """Loads the model.

        Raises:
            WorkerError: if it can't be loaded.
        """
        await self.slot.open()
        self._watch(self.slot.model)

    async def run(self) -> None:
        """Begins to compute."""
        coroutines = (self.batcher.run(), self.slot.keep_running(), self._keep_state())
        self._tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]

    async def close(self) -> None:
        """Ends; whoever calls it has waited for the answers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.slot.close()
        if self.drift is not None:
            self.states.take(self.drift)
            self.states.write()

    async def judge(self, job: Job) -> tuple[list[dict], ServedModel]:
        """Rows of a job's images, and the model that judged them.

        Raises:
            Refusal: if it can't be computed.
        """
        rows, model = await self._computed(job)
        features = [row.pop("features") for row in rows]
        self.metrics.judged([row["label"] for row in rows])
        of_model = zip(job.images, rows, strict=True)
        self.recent.add(
            [RecentImage(image, job.category, r["category"], r["label"], r["score"], model.version) for image, r in of_model]
        )
        self._watch(model)
        if model.version == self._drift_version:
            self.drift.update(rows, features)
            self._look_closer()
        return rows, model

    async def repair(self, job: Job) -> tuple[list[dict], ServedModel]:
        """Rows of a job's repaired images, and the model that repaired them.

        Raises:
            Refusal: 501 if the model can't repair, or as for judging.
        """
        self.check_repairs()
        return await self._computed(job)

    def check_repairs(self) -> None:
        """Raises Refusal 501 if the model that serves can't repair."""
        reason = self.slot.model.worker.info.no_repair
        if reason is not None:
            raise Refusal(501, reason)

    async def exchange(self, path: str, force: bool) -> tuple[Comparison, ServedModel]:
        """Lets another model serve; see [`ModelSlot.replace`].

        Raises:
            Refusal: if it may or can not.
        """
        comparison = await self.slot.replace(path, self.recent, force)
        self._watch(self.slot.model)
        return comparison, self.slot.model

    async def take_feedback(self, **fields: Any) -> FeedbackRecord:
        """Appends an operator's word to the file, with the present time.

        Raises:
            Refusal: 501 without a file, 422 if a field can't be used, 503 if it can't be written.
        """
        if self.settings.feedback is None:
            raise Refusal(501, "this server keeps no feedback; start it with --feedback FILE")
        try:
            now = datetime.now(timezone.utc)  # noqa: UP017 - Python 3.10 has no datetime.UTC
            record = FeedbackRecord(**fields, time=now.isoformat(timespec="milliseconds"))
        except ValueError as error:
            raise Refusal(422, str(error)) from None
        try:
            await asyncio.to_thread(append_feedback, self.settings.feedback, record)
        except OSError as error:
            raise Refusal(503, f"the feedback could not be written: {error.strerror}; try again", 10) from None
        self.metrics.feedback.labels(record.verdict, record.correct_verdict).inc()
        self.feedback.add(record)
        self.drift.take_feedback(self.feedback)
        return record

    def show(self) -> None:
        """Sets the metrics that tell a state."""
        self.metrics.queue.set(self.batcher.held)
        self.metrics.ready.set(self.slot.is_ready)
        self.metrics.version.clear()
        self.metrics.version.labels(self.slot.model.worker.info.digest).set(self.slot.model.version)
        self.drift.show(self.metrics)

    async def _computed(self, job: Job) -> tuple[list[dict], ServedModel]:
        result, model = await self.batcher.result(job)
        if isinstance(result, Refusal):
            raise result
        return result, model

    def _watch(self, model: ServedModel) -> None:
        """Begins a monitor of a new model; a state of it that was saved is gone on from."""
        if model.version <= self._drift_version:
            return
        if self.drift is not None:
            self.states.take(self.drift)
            self.states.write()
        with_feedback = self.settings.feedback is not None
        self.drift = CategoryMonitors(model.worker.info, self.settings.level, self.states.of_models, with_feedback)
        if self.drift.damage is not None:
            self.states.begin_anew(self.drift.damage, self.drift.key)
        self.drift.take_feedback(self.feedback)
        self._drift_version = model.version

    def _look_closer(self) -> None:
        """Has a thread do what the monitor needs time for, one thing after the other."""
        work = None if self._looks_closer else self.drift.work(partial(self.recent.of, self._drift_version))
        if work is not None:
            self._looks_closer = True
            # Not waited for in the end: what is not done is due again after the next start.
            threading.Thread(target=self._work, args=(work, asyncio.get_running_loop()), daemon=True).start()

    def _work(self, work: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        failed = False
        try:
            work()
        except Exception:
            LOG.exception("the monitor could not look closer; it tries again with the next image")
            failed = True
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(self._worked, failed)

    def _worked(self, failed: bool) -> None:
        self._looks_closer = False
        if not failed:
            self._look_closer()

    async def _keep_state(self) -> None:
        while True:
            await asyncio.sleep(SAVED_EVERY)
            self.states.take(self.drift)
            await asyncio.to_thread(self.states.write)
