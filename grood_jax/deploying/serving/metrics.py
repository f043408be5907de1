"""What Prometheus reads of the service."""

import time
from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self, batch_sizes: Iterable[int]) -> None:
        """Registers them.

        Args:
          batch_sizes: the buckets of the histogram of batches.
        """
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "grood_requests",
            "Requests by path and status",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "grood_request_seconds",
            "From a request's headers to the end of its answer",
            ["path"],
            registry=self.registry,
        )
        self._batch = Histogram(
            "grood_batch_images",
            "Images in a batch, without those that fill it up",
            buckets=list(batch_sizes),
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "grood_batch_seconds", "On the device, for a batch", registry=self.registry
        )
        self._images = Counter(
            "grood_images",
            "Images by verdict; the OOD share is that of is_ood true",
            ["is_ood"],
            registry=self.registry,
        )
        for verdict in ("false", "true"):
            self._images.labels(verdict)
        ProcessCollector(registry=self.registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Asks for the queue's length whenever the metrics are read."""
        gauge = Gauge("grood_queue_images", "Images that wait", registry=self.registry)
        gauge.set_function(length)

    def batch(self, images: int, seconds: float) -> None:
        """Counts a batch."""
        self._batch.observe(images)
        self._batch_seconds.observe(seconds)

    def verdicts(self, images: int, ood: int) -> None:
        """Counts images that were answered, and how many of them were OOD."""
        self._images.labels("true").inc(ood)
        self._images.labels("false").inc(images - ood)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts requests by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        """Wraps an application.

        Args:
          app: the application.
          metrics: where requests are counted.
          paths: that are told apart; the rest is "other", lest strangers make up labels.
        """
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.request(path, status, time.perf_counter() - start)
