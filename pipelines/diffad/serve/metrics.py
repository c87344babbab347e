"""What Prometheus reads of a server."""

import time
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTES = ("/predict", "/repair", "/feedback", "/model")
OTHER = "other"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REJECT_WINDOW = 1000  # images


class Metrics:
    """Counters and gauges of one server, in a registry of their own."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        self.seconds = Histogram(
            "diffad_request_seconds", "From a request's arrival to its answer", ["route"], buckets=SECONDS, registry=registry
        )
        self.requests = Counter("diffad_requests", "Answered requests", ["route", "status"], registry=registry)
        self.images = Counter("diffad_images", "Judged images", ["verdict"], registry=registry)
        self.batch_images = Histogram(
            "diffad_batch_images", "Images that were computed together", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.restarts = Counter("diffad_worker_restarts", "Restarts of the process that computes", registry=registry)
        self.swaps = Counter("diffad_model_swaps", "Models that took another's place", registry=registry)
        self.feedback = Counter("diffad_feedback", "Operators' words", ["verdict", "correct_verdict"], registry=registry)
        self.queue = Gauge("diffad_queue_images", "Images waiting or being scored", registry=registry)
        self.capacity = Gauge("diffad_queue_capacity", "Images that may wait or be scored", registry=registry)
        self.ready = Gauge("diffad_ready", "1 while a model is loaded", registry=registry)
        self.version = Gauge("diffad_model_version", "Of the model that serves", ["digest"], registry=registry)
        self.reject_rate = Gauge(
            "diffad_reject_rate", f"Share of the latest {REJECT_WINDOW} images called defective or unknown", registry=registry
        )
        self.monitored = Gauge("diffad_monitor_parts", "Parts that the monitor has taken", ["category"], registry=registry)
        self.changed = Gauge("diffad_monitor_changed", "1 once the monitor raised an alarm", ["category"], registry=registry)
        self.evidence = Gauge(
            "diffad_monitor_evidence", "e-value; an alarm is raised at the limit", ["category", "test"], registry=registry
        )
        self.limit = Gauge("diffad_monitor_limit", "e-value of an alarm", ["category", "test"], registry=registry)
        self.alarm = Gauge("diffad_monitor_alarm", "Number of parts at a test's alarm", ["category", "test"], registry=registry)
        self.p_value = Gauge(
            "diffad_monitor_p_value", "Of the latest comparison; an alarm at the limit", ["category", "test"], registry=registry
        )
        self.p_limit = Gauge("diffad_monitor_p_limit", "p-value of an alarm", ["category", "test"], registry=registry)
        self.suggestion = Gauge(
            "diffad_monitor_suggestion",
            "What changed in the images at the alarm, in deviations",
            ["category", "statistic", "change"],
            registry=registry,
        )
        self._rejects: deque[bool] = deque(maxlen=REJECT_WINDOW)

    def judged(self, labels: list[str]) -> None:
        """Counts images by their verdicts."""
        for label in labels:
            self.images.labels(label).inc()
            self._rejects.append(label != "good")
        self.reject_rate.set(sum(self._rejects) / len(self._rejects))

    def forget_monitor(self) -> None:
        """Forgets what a monitor that began anew does not say."""
        gauges = (self.monitored, self.changed, self.evidence, self.limit, self.alarm, self.p_value, self.p_limit)
        for gauge in (*gauges, self.suggestion):
            gauge.clear()


class MetricsMiddleware:
    """ASGI middleware that counts requests by route and status, and measures how long those that compute take.

    Args:
        app: to measure.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Callable[[], float] = time.monotonic):
        self.app, self.metrics, self.clock = app, metrics, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        route = scope["path"] if scope["path"] in ROUTES else OTHER
        start, status = self.clock(), 500

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting_status)
        finally:
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(self.clock() - start)
