"""What `/metrics` says: read from the engine and the pool when it is asked for, and counted per response."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdvft_server.service import Gauges

__all__ = ["CountResponses", "Metrics"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One app's metrics, in a registry of their own."""

    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Read(gauges))
        self.responses = Counter(
            "cdvft_http_responses", "Responses", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "cdvft_http_seconds", "Time to the last byte", ["route"], buckets=BUCKETS, registry=self._registry
        )

    def render(self) -> tuple[bytes, str]:
        """The text and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4


class _Read(Collector):
    """Nothing is kept here: each scrape reads the engine's and the pool's own numbers."""

    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        read = self._gauges()
        for name, (text, value) in read.gauges.items():
            yield GaugeMetricFamily(f"cdvft_{name}", text, value)
        for name, (text, value) in read.counters.items():
            yield CounterMetricFamily(f"cdvft_{name}", text, value)
        kernel = GaugeMetricFamily("cdvft_kernel_info", "What runs CDVFT's products", labels=["kernel", "reason"])
        kernel.add_metric([read.kernel.name, read.kernel.reason], 1)
        yield kernel
        for name, (text, sources) in read.histograms.items():
            family = HistogramMetricFamily(f"cdvft_{name}", text, labels=["source"])
            for source, times in sources.items():
                family.add_metric([source], times.buckets, times.seconds)
            yield family


class CountResponses:
    """Counts each response under its route's path, never under the path that was asked for."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            self._metrics.responses.labels(scope["method"], route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
