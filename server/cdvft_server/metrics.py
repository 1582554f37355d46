"""What `/metrics` says: read from the engine and the pool when it is asked for, and counted per response."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdvft_server.accesslog import method_of, route_of
from cdvft_server.service import Gauges, RouterView

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
        attention = GaugeMetricFamily("cdvft_attention_info", "What computes attention", labels=["kernel"])
        attention.add_metric([read.attention], 1)
        yield attention
        graphs = GaugeMetricFamily(
            "cdvft_graphs_info", "Whether decode steps are recorded", labels=["graphs", "reason"]
        )
        graphs.add_metric(["on" if read.recording.on else "off", read.recording.reason], 1)
        yield graphs
        for name, (text, spread) in read.histograms.items():
            yield HistogramMetricFamily(f"cdvft_{name}", text, spread.buckets, spread.total)
        for name, (text, sources) in read.by_source.items():
            family = HistogramMetricFamily(f"cdvft_{name}", text, labels=["source"])
            for source, spread in sources.items():
                family.add_metric([source], spread.buckets, spread.total)
            yield family
        yield from _as_vllm(read.router)


def _as_vllm(view: RouterView) -> Iterator[Metric]:
    """Under the names that routers for vLLM look for; the last one's value is the time, as there."""
    for name, text, value in (
        ("num_requests_waiting", "Requests that wait", view.requests_waiting),
        ("num_requests_running", "Requests in batches", view.requests_running),
        ("kv_cache_usage_perc", "KV tokens reserved, of those there are: 0 to 1", view.kv_usage),
    ):
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
        family.add_metric([view.model], value)
        yield family
    labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
    adapters = GaugeMetricFamily(
        "vllm:lora_requests_info", "Public adapters in use; its value is the time", labels=labels
    )
    adapters.add_metric([str(view.max_adapters), ",".join(view.running), ",".join(view.waiting)], time.time())
    yield adapters


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
            route = route_of(scope)
            self._metrics.responses.labels(method_of(scope), route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
